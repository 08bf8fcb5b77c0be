"""The model of a worker: text → token ids → logits, its past packed and shared, or plain."""

from packkv.worker.model.decoder import Decoder, Sequence
from packkv.worker.model.language import Language, Message
from packkv.worker.model.opened import OpenModel, open_model

__all__ = ["Decoder", "Language", "Message", "OpenModel", "Sequence", "open_model"]
