"""Between seconds and protobuf's timestamps and durations."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from sealane.errors import InvalidArgument


def time_of(seconds: float) -> Timestamp:
    """A timestamp of seconds since 1970."""
    stamp = Timestamp()
    stamp.FromNanoseconds(int(seconds * 1e9))
    return stamp


def duration_of(seconds: float) -> Duration:
    """A duration."""
    duration = Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration


def seconds_of(value: Timestamp | Duration, field: str) -> float:
    """The seconds of a value that a caller sent.

    Raises:
        InvalidArgument: it is outside of what protobuf allows.
    """
    try:
        return value.ToNanoseconds() / 1e9
    except ValueError as error:
        kind = "timestamp" if isinstance(value, Timestamp) else "duration"
        raise InvalidArgument(f"{field} is no {kind}; look at its seconds and nanos", field=field) from error
