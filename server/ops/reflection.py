"""Reflection: the contract itself, for tools that have no copy of it. Whoever asks needs no token.

It is served by both names that tools ask for: the messages of `v1` are those of `v1alpha` to the bit.
"""

from collections.abc import AsyncIterable, Iterable
from typing import cast

import grpc
from google.protobuf.descriptor import FileDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.reflection import aio
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from server.ops.public_streams import PublicStreams
from server.rpc.call_context import Context

NAMES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")

_MOST_STREAMS = 64
# Tools ask all that they want to know at once; those that keep the stream for later open another.
_SECONDS = 30.0

_Answers = AsyncIterable[ServerReflectionResponse]


class Reflection:
    """Knows those services, and what their files import: nothing else that this program has messages for.

    Args:
        services: what is shown.
    """

    def __init__(self, services: Iterable[ServiceDescriptor]) -> None:
        services = list(services)
        pool = DescriptorPool()
        for service in services:
            _add(service.file, pool)
        self._servicer = aio.ReflectionServicer([service.full_name for service in services], pool)
        self._streams = PublicStreams(most=_MOST_STREAMS, seconds=_SECONDS)

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """The service by each of its names, for grpc to serve."""
        method = grpc.stream_stream_rpc_method_handler(
            self._answer_all,
            request_deserializer=ServerReflectionRequest.FromString,
            response_serializer=ServerReflectionResponse.SerializeToString,
        )
        return tuple(grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": method}) for name in NAMES)

    def close(self) -> None:
        """End every stream, and let none begin any more."""
        self._streams.close()

    async def _answer_all(self, requests: AsyncIterable[ServerReflectionRequest], context: Context) -> None:
        async with self._streams.room(context):
            # Its stub takes the generator for a coroutine.
            answers = cast(_Answers, self._servicer.ServerReflectionInfo(requests, context))
            async for answer in answers:
                await context.write(answer)


def _add(file: FileDescriptor, pool: DescriptorPool) -> None:
    """Add a file to the pool, behind those that it imports."""
    try:
        pool.FindFileByName(file.name)
    except KeyError:
        for imported in file.dependencies:
            _add(imported, pool)
        pool.AddSerializedFile(file.serialized_pb)
