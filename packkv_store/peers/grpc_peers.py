"""Calls to other nodes: each has a deadline, and carries the credential of the caller it is for."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from packkv_protos.v1 import block_store_pb2 as pb
from packkv_store.block import ChainHash, Span, TierName
from packkv_store.cluster import Landed, PeerFailure, PeerMatch
from packkv_store.peers.bulk_pull import BulkPull, Offer
from packkv_store.peers.channels import Channels
from packkv_store.peers.receipt import Receipt
from packkv_store.store.answers import MissReason
from packkv_store.tenant import Tenant

SERVICE = pb.DESCRIPTOR.services_by_name["BlockStore"].full_name
# What a caller waits for before an owner counts as dead, and for the next frame of one that sends.
ANSWER_SECONDS = 1.0
FRAME_SECONDS = 2.0
# What another node may take to fetch what it is told to.
TAKE_SECONDS = 30.0
MISSES = {
    pb.MISS_REASON_CORRUPT: MissReason.CORRUPT,
    pb.MISS_REASON_HEADS: MissReason.HEADS,
}
# of a node that is gone, hangs, or leaves; others say that this call was wrong
GONE = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.UNIMPLEMENTED,
)


class GrpcPeers:
    """The other nodes as `packkv_store.cluster` wants them."""

    def __init__(self, channels: Channels, bulk: BulkPull | None) -> None:
        self._channels = channels
        self._bulk = bulk

    async def match(
        self,
        address: str,
        tenant: Tenant,
        hashes: Sequence[ChainHash],
        heads: Span,
        lease_seconds: float,
    ) -> PeerMatch:
        request = pb.MatchRequest(
            chain_hashes=hashes,
            heads=pb.Range(first=heads.first, count=heads.count),
            lease_ms=int(lease_seconds * 1000),
            here=True,
        )
        reply = await self._ask(address, tenant, "Match", request, pb.MatchReply)
        if not len(reply.lengths) == len(reply.tiers) == reply.blocks <= len(hashes):
            raise PeerFailure(f"{address}: {reply.blocks} blocks, {len(reply.lengths)} lengths")
        miss = MISSES.get(reply.miss, MissReason.ABSENT) if reply.blocks < len(hashes) else None
        tiers = [TierName.RAM if t == pb.TIER_RAM else TierName.DISK for t in reply.tiers]
        return PeerMatch(list(reply.lengths), tiers, miss, reply.lease_id)

    async def fetch(
        self,
        address: str,
        tenant: Tenant,
        hashes: Sequence[ChainHash],
        places: Sequence[memoryview],
        on_bytes: Landed,
    ) -> None:
        if self._bulk is not None:

            async def ask() -> Offer:
                reply = await self._ask(address, tenant, "Paths", pb.PathsRequest(), pb.PathsReply)
                return Offer(reply.bulk_port, reply.nonce)

            token = tenant.credential
            if await self._bulk.fetch(address, token, ask, hashes, places, on_bytes):
                return
        receipt = Receipt(places, on_bytes)
        request = pb.GetRequest(chain_hashes=hashes, here=True).SerializeToString()
        async with self._calling(address) as channel:
            method: Any = channel.unary_stream(f"/{SERVICE}/Get", None, None)
            call = method(request, metadata=_credential(tenant))
            try:
                while True:
                    async with asyncio.timeout(FRAME_SECONDS):
                        message = await call.read()
                    if message is grpc.aio.EOF:
                        break
                    receipt.add(message)
            finally:
                call.cancel()
        receipt.check_complete()

    async def take(
        self, address: str, tenant: Tenant, hashes: Sequence[ChainHash], node: str, *, spare: bool
    ) -> list[bool]:
        request = pb.TakeRequest(chain_hashes=hashes, node=node, spare=spare)
        reply = await self._ask(address, tenant, "Take", request, pb.TakeReply, TAKE_SECONDS)
        if len(reply.here) != len(hashes):
            raise PeerFailure(f"{address}: {len(reply.here)} answers for {len(hashes)} blocks")
        return list(reply.here)

    async def get_profile(self, address: str, tenant: Tenant, digest: bytes) -> bytes | None:
        request = pb.GetProfileRequest(model_digest=digest, here=True)
        reply = await self._ask(address, tenant, "GetProfile", request, pb.ProfileReply)
        return reply.profile or None

    async def put_profile(
        self, address: str, tenant: Tenant, digest: bytes, profile: bytes
    ) -> None:
        request = pb.PutProfileRequest(model_digest=digest, profile=profile)
        await self._ask(address, tenant, "PutProfile", request, pb.ProfileReply, TAKE_SECONDS)

    async def renew(self, address: str, tenant: Tenant, lease_id: int, seconds: float) -> None:
        request = pb.RenewRequest(lease_id=lease_id, lease_ms=int(seconds * 1000))
        await self._ask(address, tenant, "Renew", request, pb.RenewReply)

    async def release(self, address: str, tenant: Tenant, lease_id: int) -> None:
        request = pb.ReleaseRequest(lease_id=lease_id)
        await self._ask(address, tenant, "Release", request, pb.ReleaseReply)

    async def close(self) -> None:
        await self._channels.close()
        if self._bulk is not None:
            self._bulk.close()

    async def _ask(
        self,
        address: str,
        tenant: Tenant,
        name: str,
        request: Any,
        reply: Any,
        seconds: float = ANSWER_SECONDS,
    ) -> Any:
        async with self._calling(address) as channel:
            method: Any = channel.unary_unary(
                f"/{SERVICE}/{name}", type(request).SerializeToString, reply.FromString
            )
            return await method(request, timeout=seconds, metadata=_credential(tenant))

    @asynccontextmanager
    async def _calling(self, address: str) -> AsyncIterator[grpc.aio.Channel]:
        channel = self._channels.channel(address)
        try:
            yield channel
        except grpc.aio.AioRpcError as error:
            if error.code() in GONE:
                self._channels.failed(address)
            raise PeerFailure(f"{address}: {error.code().name}") from None
        except TimeoutError:
            self._channels.failed(address)
            raise PeerFailure(f"{address}: no frame for {FRAME_SECONDS:g} s") from None
        except (grpc.aio.UsageError, asyncio.InvalidStateError) as error:
            # the channel was closed beneath the call
            raise PeerFailure(f"{address}: {type(error).__name__}") from None


def _credential(tenant: Tenant) -> tuple[tuple[str, str], ...]:
    if tenant.credential is None:
        return ()
    return (("authorization", f"Bearer {tenant.credential}"),)
