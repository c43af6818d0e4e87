"""A channel over TLS. Its certificate files can be replaced while it is in use."""

import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import grpc

from cellexport.pem import Pem, PemReloader

M = TypeVar("M")

# The shortest time between two checks whether the certificate files have changed.
_CHECK_SECONDS = 1.0


class RenewingChannel(grpc.Channel):
    """A channel that begins each call on a connection made with the newest certificate files.

    When the files change, it opens a new channel and begins no more calls on the old one. The old channel lives until
    its last call has ended.

    Args:
        reloader: reads the certificate files.
        connect: makes a channel from the content of the files.
    """

    def __init__(self, reloader: PemReloader, connect: Callable[[Pem], grpc.Channel]) -> None:
        self._reloader = reloader
        self._connect = connect
        self._lock = threading.Lock()
        self._channel = connect(reloader.latest)
        self._check_at = time.monotonic() + _CHECK_SECONDS

    def current(self) -> grpc.Channel:
        """Return the channel for new calls: a new one if the files have changed."""
        with self._lock:
            if time.monotonic() >= self._check_at:
                self._check_at = time.monotonic() + _CHECK_SECONDS
                fresh = self._reloader.renewed()
                if fresh is not None:
                    # Don't close the old channel: that would end its calls.
                    self._channel = self._connect(fresh)
            return self._channel

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> "RenewingChannel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def subscribe(self, callback: Callable[[grpc.ChannelConnectivity], None], try_to_connect: bool = False) -> None:
        """Subscribe to the connectivity of the current channel only."""
        self.current().subscribe(callback, try_to_connect)

    def unsubscribe(self, callback: Callable[[grpc.ChannelConnectivity], None]) -> None:
        self.current().unsubscribe(callback)

    def unary_unary(self, *args: Any, **kwargs: Any) -> "_UnaryUnary":
        return _UnaryUnary(_Method(self, lambda channel: channel.unary_unary(*args, **kwargs)))

    def unary_stream(self, *args: Any, **kwargs: Any) -> "_UnaryStream":
        return _UnaryStream(_Method(self, lambda channel: channel.unary_stream(*args, **kwargs)))

    def stream_unary(self, *args: Any, **kwargs: Any) -> "grpc.StreamUnaryMultiCallable[Any, Any]":
        """Return the method on the current channel only: the contract has no method of this kind."""
        return self.current().stream_unary(*args, **kwargs)

    def stream_stream(self, *args: Any, **kwargs: Any) -> "grpc.StreamStreamMultiCallable[Any, Any]":
        """Return the method on the current channel only: the contract has no method of this kind."""
        return self.current().stream_stream(*args, **kwargs)


class _Method(Generic[M]):
    """A gRPC method that is called on the newest channel."""

    def __init__(self, channel: RenewingChannel, make: Callable[[grpc.Channel], M]) -> None:
        self._channel = channel
        self._make = make
        # A channel and its method, replaced together as one tuple: no thread must see the method of another channel.
        self._made: tuple[grpc.Channel, M] | None = None

    def latest(self) -> M:
        channel = self._channel.current()
        made = self._made
        if made is None or made[0] is not channel:
            made = self._made = channel, self._make(channel)
        return made[1]


class _UnaryUnary(grpc.UnaryUnaryMultiCallable):  # type: ignore[type-arg]  # generic in the stubs only
    def __init__(self, method: "_Method[grpc.UnaryUnaryMultiCallable[Any, Any]]") -> None:
        self._method = method

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._method.latest()(*args, **kwargs)

    def with_call(self, *args: Any, **kwargs: Any) -> Any:
        return self._method.latest().with_call(*args, **kwargs)

    def future(self, *args: Any, **kwargs: Any) -> Any:
        return self._method.latest().future(*args, **kwargs)


class _UnaryStream(grpc.UnaryStreamMultiCallable):  # type: ignore[type-arg]  # generic in the stubs only
    def __init__(self, method: "_Method[grpc.UnaryStreamMultiCallable[Any, Any]]") -> None:
        self._method = method

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._method.latest()(*args, **kwargs)
