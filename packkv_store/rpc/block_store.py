"""The BlockStore service: each method turns a request into a domain call and back."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, NamedTuple

import grpc
import grpc.aio

from packkv_protos.v1 import block_store_pb2 as pb
from packkv_store.block import ChainHash, TierName
from packkv_store.cluster.own_store import OwnStore
from packkv_store.errors import StreamTimeout
from packkv_store.rpc import request as checked
from packkv_store.rpc.frames import MISS, answer_frames, get_frames, read_put_frame
from packkv_store.rpc.status import Context, status_errors
from packkv_store.store import Store, Uploading
from packkv_store.store.answers import PutResult, PutStatus
from packkv_store.tenant import Access, Tenant

# As many groups as a payload can have layers.
LAYER_BY_LAYER = 65_535
TIER = {TierName.RAM: pb.TIER_RAM, TierName.DISK: pb.TIER_DISK}
PUT = {
    PutStatus.STORED: pb.PUT_STATUS_STORED,
    PutStatus.ALREADY_PRESENT: pb.PUT_STATUS_ALREADY_PRESENT,
    PutStatus.REJECTED: pb.PUT_STATUS_REJECTED,
}


class BlockStoreService:
    """Serves packkv.v1.BlockStore: from `own` what is asked for with `here`."""

    def __init__(
        self,
        store: Store,
        own: OwnStore,
        access: Access,
        stream_seconds: float,
        paths: pb.PathsReply,
    ) -> None:
        self._store = store
        self._own = own
        self._access = access
        self._stream_seconds = stream_seconds
        self._paths = paths

    def handler(self) -> grpc.GenericRpcHandler:
        """What a server needs to serve it; Put and Get move bytes, not messages."""
        unary = grpc.unary_unary_rpc_method_handler
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Match": unary(self.Match, pb.MatchRequest.FromString, pb.MatchReply.SerializeToString),
            "Put": grpc.stream_unary_rpc_method_handler(
                self.Put, None, pb.PutReply.SerializeToString
            ),
            "Get": grpc.unary_stream_rpc_method_handler(self.Get, pb.GetRequest.FromString, None),
            "Renew": unary(self.Renew, pb.RenewRequest.FromString, pb.RenewReply.SerializeToString),
            "Release": unary(
                self.Release, pb.ReleaseRequest.FromString, pb.ReleaseReply.SerializeToString
            ),
            "PutProfile": unary(
                self.PutProfile, pb.PutProfileRequest.FromString, pb.ProfileReply.SerializeToString
            ),
            "GetProfile": unary(
                self.GetProfile, pb.GetProfileRequest.FromString, pb.ProfileReply.SerializeToString
            ),
            "Take": unary(self.Take, pb.TakeRequest.FromString, pb.TakeReply.SerializeToString),
            "Watch": grpc.unary_stream_rpc_method_handler(
                self.Watch, pb.WatchRequest.FromString, pb.WatchFrame.SerializeToString
            ),
            "Paths": unary(self.Paths, pb.PathsRequest.FromString, pb.PathsReply.SerializeToString),
        }
        name = pb.DESCRIPTOR.services_by_name["BlockStore"].full_name
        return grpc.method_handlers_generic_handler(name, methods)

    async def Match(self, request: pb.MatchRequest, context: Context) -> pb.MatchReply:
        async with status_errors(context):
            store = self._own if request.here else self._store
            found = await store.match(
                self._tenant(context),
                checked.chain_hashes(request.chain_hashes),
                checked.span("heads", request.heads),
                request.lease_ms / 1000,
            )
        owners = _numbered(found.owners) if request.owners else _numbered(())
        return pb.MatchReply(
            owners=owners.names,
            owner=owners.numbers,
            blocks=len(found.lengths),
            lease_id=found.lease_id,
            lease_ms=int(found.lease_seconds * 1000),
            lengths=found.lengths,
            tiers=_tiers(found.tiers),
            miss=MISS[found.miss],
        )

    async def Put(self, messages: AsyncIterator[bytes], context: Context) -> pb.PutReply:
        async with (
            status_errors(context),
            self._limited(),
            self._store.put(self._tenant(context)) as upload,
        ):
            lacking = 0
            async for message in messages:
                lacking = await _take(upload, *read_put_frame(message), lacking)
            return pb.PutReply(results=[_put_result(one) for one in await upload.finish()])

    async def Get(self, request: pb.GetRequest, context: Context) -> None:
        async with (
            status_errors(context),
            self._limited(),
            (self._own if request.here else self._store).get(
                self._tenant(context),
                checked.chain_hashes(request.chain_hashes),
                checked.span("layers", request.layers),
                checked.span("heads", request.heads),
            ) as download,
        ):
            for frame in answer_frames(download.answers):
                await context.write(frame)
            layout = await download.layout(LAYER_BY_LAYER)
            async for frame in get_frames(layout, download.runs(layout)):
                await context.write(frame)

    async def Renew(self, request: pb.RenewRequest, context: Context) -> pb.RenewReply:
        async with status_errors(context):
            seconds = request.lease_ms / 1000
            left = await self._store.renew(self._tenant(context), request.lease_id, seconds)
        return pb.RenewReply(remaining_ms=int(left * 1000))

    async def Release(self, request: pb.ReleaseRequest, context: Context) -> pb.ReleaseReply:
        async with status_errors(context):
            await self._store.release(self._tenant(context), request.lease_id)
        return pb.ReleaseReply()

    async def PutProfile(self, request: pb.PutProfileRequest, context: Context) -> pb.ProfileReply:
        async with status_errors(context):
            tenant = self._tenant(context)
            digest = checked.digest("model_digest", request.model_digest)
            profile = checked.profile(request.profile)
            in_force = await self._store.put_profile(tenant, digest, profile)
        return pb.ProfileReply(profile=in_force)

    async def GetProfile(self, request: pb.GetProfileRequest, context: Context) -> pb.ProfileReply:
        async with status_errors(context):
            digest = checked.digest("model_digest", request.model_digest)
            store = self._own if request.here else self._store
            profile = await store.get_profile(self._tenant(context), digest)
        return pb.ProfileReply(profile=profile or b"")

    async def Take(self, request: pb.TakeRequest, context: Context) -> pb.TakeReply:
        async with status_errors(context):
            hashes = checked.chain_hashes(request.chain_hashes)
            tenant = self._tenant(context)
            here = await self._own.take(tenant, hashes, request.node, request.spare)
        return pb.TakeReply(here=here)

    async def Watch(self, request: pb.WatchRequest, context: Context) -> None:
        async with (
            status_errors(context),
            aclosing(self._store.watch(self._tenant(context), request.snapshot)) as changes,
        ):
            sequence = 0
            async for change in changes:
                sequence += 1
                frame = pb.WatchFrame(
                    sequence=sequence,
                    reset=change.reset,
                    current=change.current,
                    stored=change.stored,
                    removed=change.removed,
                )
                # the next change may be hours away; one that is not taken must not be
                async with self._limited():
                    await context.write(frame)

    async def Paths(self, request: pb.PathsRequest, context: Context) -> pb.PathsReply:
        async with status_errors(context):
            self._tenant(context)
        return self._paths

    def _tenant(self, context: Context) -> Tenant:
        return self._access.tenant(checked.bearer_token(context))

    @asynccontextmanager
    async def _limited(self) -> AsyncIterator[None]:
        # a reader that stalls without a deadline would hold its blocks for ever
        try:
            async with asyncio.timeout(self._stream_seconds):
                yield
        except TimeoutError as error:
            raise StreamTimeout(self._stream_seconds) from error


class _Owners(NamedTuple):
    names: Sequence[str]
    numbers: Sequence[int]


def _tiers(tiers: Sequence[TierName]) -> "list[pb.Tier.ValueType]":
    # mostly one for all: a name is hashed by Python itself, a microsecond for each of thousands
    if tiers and tiers.count(tiers[0]) == len(tiers):
        return [TIER[tiers[0]]] * len(tiers)
    return list(map(TIER.__getitem__, tiers))


def _numbered(owners: Sequence[str]) -> _Owners:
    """Each address once, and its number for each block; no block when all are here."""
    names = [name for name in dict.fromkeys(owners) if name]
    number = {"": 0} | {name: place for place, name in enumerate(names, 1)}
    return _Owners(names, [number[name] for name in owners] if names else ())


async def _take(
    upload: Uploading, starts: Sequence[pb.BlockStart], data: memoryview, lacking: int
) -> int:
    """Takes a frame in; `lacking` bytes of the last block, and so many afterwards, are due."""
    checked.frame_size(len(data))
    for start in starts:
        if lacking and data:
            await upload.data(data[:lacking])
            data = data[lacking:]
        name = checked.digest("chain_hash", start.chain_hash)
        await upload.start(ChainHash(name), start.length)
        lacking = start.length
    if data:
        await upload.data(data)
    return lacking - len(data)


def _put_result(result: PutResult) -> pb.PutResult:
    return pb.PutResult(
        chain_hash=result.chain_hash, status=PUT[result.status], reason=result.reason
    )
