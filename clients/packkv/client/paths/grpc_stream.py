"""The path that always works: the streams Put and Get of the gRPC service, in 1 MiB frames.

Frames are handed to gRPC and taken from it as bytes: a protobuf message around them would copy the
payload twice more.
"""

from __future__ import annotations

from collections.abc import Iterable

import grpc

from packkv.client.messages import Fetched, Put, puts_of, range_of
from packkv.client.paths import Buffer, Wanted
from packkv.client.paths.buffers import Buffers
from packkv.client.receive import Receipt, read_frame
from packkv.client.upload import Upload
from packkv_protos.v1 import block_store_pb2 as pb

# glibc maps larger memory than it has ever seen freed afresh each time, and its first touch costs
# more than the copy of a frame; having freed this much, which is the most it learns from, it keeps
# such memory. Engines have done so long before. The pages are never touched.
_LESSON_BYTES = (32 << 20) - (64 << 10)

_SERVICE = pb.DESCRIPTOR.services_by_name["BlockStore"].full_name


class GrpcStream:
    """Payloads over the channel that every other call uses too; raises gRPC's own errors."""

    name = "grpc"

    def __init__(
        self, channel: grpc.Channel, metadata: tuple[tuple[str, str], ...], buffers: Buffers
    ) -> None:
        bytes(_LESSON_BYTES)
        self._metadata = metadata
        self._buffers = buffers
        self._get: grpc.UnaryStreamMultiCallable[pb.GetRequest, bytes] = channel.unary_stream(
            f"/{_SERVICE}/Get", request_serializer=pb.GetRequest.SerializeToString
        )
        self._put: grpc.StreamUnaryMultiCallable[bytes, pb.PutReply] = channel.stream_unary(
            f"/{_SERVICE}/Put", response_deserializer=pb.PutReply.FromString
        )

    def get(self, wanted: Wanted, deadline_s: float) -> list[Fetched]:
        request = pb.GetRequest(
            chain_hashes=wanted.chain_hashes,
            layers=range_of(wanted.layers),
            heads=range_of(wanted.heads),
            lease_id=wanted.lease_id,
        )
        receipt = Receipt(
            len(wanted.chain_hashes),
            max_bytes=wanted.max_bytes,
            whole=wanted.whole,
            buffers=self._buffers,
        )
        call = self._get(request, timeout=deadline_s, metadata=self._metadata)
        try:
            for message in call:
                frame = read_frame(message)
                receipt.add(frame)
                wanted.count(len(frame.data))
                if wanted.on_layers is not None and receipt.is_answered:
                    wanted.hand_on(receipt.arrived())
        finally:
            call.cancel()
        return receipt.blocks()

    def put(self, blocks: Iterable[tuple[bytes, Buffer]], deadline_s: float) -> list[Put]:
        upload = Upload(blocks)
        reply = self._put(iter(upload), timeout=deadline_s, metadata=self._metadata)
        if upload.failure is not None:
            raise upload.failure
        return puts_of(reply, upload.started)

    def close(self) -> None:
        """The channel belongs to the client."""
