"""Limits of a listener (SECURITY 2.4): measured against floods, resets and slow peers."""

from __future__ import annotations

CONTROL_MESSAGE_BYTES = 4 * 1024 * 1024
DATA_MESSAGE_BYTES = 64 * 1024 * 1024
#: Metadata of a call, or headers of a request.
HEAD_BYTES = 16_384
#: A unary call without a deadline gets this one.
UNARY_SECONDS = 60.0
#: A stream may live this long; long-lived ones reconnect.
STREAM_SECONDS = 24 * 3600.0
#: Bytes that a connection reads at once. grpcio's own limit of 4 MiB lets a flood of small frames grow the process by
#: hundreds of megabytes in seconds; with this it stays flat, and large messages come in no slower.
READ_BYTES = 64 * 1024
#: Streams of one connection at the same time.
STREAMS = 100
#: Connections of a port that strangers can reach, and milliseconds: for a handshake, until an idle one is ended, until
#: any is, and for the calls that it has then.
CONNECTIONS, HANDSHAKE_MS, IDLE_MS, AGE_MS, AGE_GRACE_MS = 1000, 5_000, 300_000, 1_800_000, 30_000

Option = tuple[str, int | str]


def client_port(message_bytes: int = CONTROL_MESSAGE_BYTES) -> list[Option]:
    """Options of a port that strangers can reach."""
    return [
        *_common(message_bytes),
        ("grpc.max_concurrent_streams", STREAMS),
        # Streams that ended count until their memory is free. Without room for them a busy client with more than 100
        # calls has every fourth refused (measured); with much room, resets fill the server with them.
        ("grpc.http2.max_deallocating_streams", STREAMS),
        ("grpc.max_allowed_incoming_connections", CONNECTIONS),
        ("grpc.max_connection_idle_ms", IDLE_MS),
        ("grpc.max_connection_age_ms", AGE_MS),
        ("grpc.max_connection_age_grace_ms", AGE_GRACE_MS),
    ]


def of_front() -> dict[str, float]:
    """The same for a front that is not grpcio's."""
    return {
        "connections": CONNECTIONS,
        "streams": STREAMS,
        "head_bytes": HEAD_BYTES,
        "handshake_seconds": HANDSHAKE_MS / 1000,
        "idle_seconds": IDLE_MS / 1000,
        "age_seconds": AGE_MS / 1000,
        "age_grace_seconds": AGE_GRACE_MS / 1000,
        "unary_seconds": UNARY_SECONDS,
    }


def behind_front(message_bytes: int = DATA_MESSAGE_BYTES) -> list[Option]:
    """Options of a server whose port a front of the same process holds: that one ends idle and old connections."""
    head = HEAD_BYTES + 1024  # what the front says of a call comes on top
    return [
        *[(name, head if value == HEAD_BYTES else value) for name, value in _common(message_bytes)],
        ("grpc.max_concurrent_streams", STREAMS),
        ("grpc.http2.max_deallocating_streams", STREAMS),
        ("grpc.max_allowed_incoming_connections", CONNECTIONS),
    ]


def mesh_port(message_bytes: int = DATA_MESSAGE_BYTES) -> list[Option]:
    """Options of a port for peers with certificates; its streams live for days."""
    return [
        *_common(message_bytes),
        ("grpc.max_concurrent_streams", 1000),
        ("grpc.max_allowed_incoming_connections", 20_000),
        # A peer whose cable was cut sends no FIN: without pings its lane would look alive for minutes.
        ("grpc.keepalive_time_ms", 5_000),
        ("grpc.keepalive_timeout_ms", 3_000),
    ]


def _common(message_bytes: int) -> list[Option]:
    return [
        ("grpc.max_receive_message_length", message_bytes),
        ("grpc.max_send_message_length", message_bytes),
        ("grpc.max_metadata_size", HEAD_BYTES),
        ("grpc.absolute_max_metadata_size", HEAD_BYTES),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.so_reuseport", 0),
        ("grpc.experimental.tcp_max_read_chunk_size", READ_BYTES),
        ("grpc.experimental.tcp_max_read_buffer_size", READ_BYTES),
    ]


def channel(message_bytes: int = DATA_MESSAGE_BYTES, *, one_of_several: bool = False) -> list[Option]:
    """Options of an outgoing channel; keepalive agrees with what the servers allow.

    Args:
        message_bytes: largest message.
        one_of_several: whether another process may take the place of the one that is called. One that was stopped, or
            whose cable was cut, ends no connection: it is noticed in 15 s then, the least that servers allow. The
            timeout of keepalive alone does not do it: with it a stream to a stopped server was still open after 25 s.
    """
    time, timeout = (12_000, 3_000) if one_of_several else (20_000, 5_000)
    return [
        ("grpc.max_receive_message_length", message_bytes),
        ("grpc.max_send_message_length", message_bytes),
        ("grpc.max_metadata_size", HEAD_BYTES),
        ("grpc.keepalive_time_ms", time),
        ("grpc.keepalive_timeout_ms", timeout),
        *([("grpc.http2.ping_timeout_ms", timeout)] if one_of_several else []),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        ("grpc.enable_retries", 0),
    ]
