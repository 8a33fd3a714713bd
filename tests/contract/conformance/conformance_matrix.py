"""The conformance matrix: its columns, and the one table of cells that are not applicable or cannot be ok.

Its rows are the functions of clients/rows_oip.py and clients/rows_tfs.py.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
SCRIPTS = HERE / "clients"
PLACES = ("gateway", "worker")
OIP, TFS = "Open Inference Protocol", "TensorFlow Serving"
_NODE = ROOT / ".venv-node/bin/node"
_BUF = Path(sys.executable).with_name("buf")
_PERF = ROOT / ".venv-perf/bin/perf_analyzer"
_WORKS = ROOT / ".venv-perf/.works"
#: What the scripts find in their environment.
PROGRAMS = {
    "BUF": _BUF,
    "NODE": _NODE,
    "NODE_PATH": ROOT / ".venv-node/node_modules",
    "PERF_ANALYZER": _PERF,
    "LD_LIBRARY_PATH": ROOT / ".venv-perf/lib",
}
_TRITON, _KSERVE = (ROOT / f".venv-{name}/bin/python" for name in ("triton", "kserve"))


@dataclass(frozen=True)
class Client:
    """A column.

    Args:
        id: its name in tests and results.
        title: its name in the document.
        package: what it comes with; its version is told.
        family: which rows it has.
        script: in clients/.
        arguments: of the script, after the file that describes the place.
        python: what runs the script.
        needs: files without which it cannot be run.
        http: whether it speaks HTTP, which a worker does not.
    """

    id: str
    title: str
    package: str
    family: str
    script: str
    arguments: tuple[str, ...] = ()
    python: Path = Path(sys.executable)
    needs: tuple[Path, ...] = ()
    http: bool = False

    @property
    def missing(self) -> str:
        """Why it cannot be run here; empty where it can."""
        absent = [str(path).removeprefix(f"{ROOT}/") for path in (self.python, *self.needs) if not path.exists()]
        return f"`make conformance-clients` has not made {', '.join(absent)}" if absent else ""


CLIENTS = (
    Client("triton-grpc", "tritonclient.grpc", "tritonclient", OIP, "triton_grpc.py", python=_TRITON),
    Client("triton-aio", "tritonclient.grpc.aio", "tritonclient", OIP, "triton_aio.py", python=_TRITON),
    Client("triton-http", "tritonclient.http", "tritonclient", OIP, "triton_http.py", python=_TRITON, http=True),
    Client("kserve-grpc", "kserve gRPC", "kserve", OIP, "kserve_grpc.py", python=_KSERVE),
    Client("kserve-rest", "kserve REST v2", "kserve", OIP, "kserve_rest.py", python=_KSERVE, http=True),
    Client("perf-grpc", "perf_analyzer gRPC", "perf", OIP, "perf_analyzer.py", ("grpc",), needs=(_PERF, _WORKS)),
    Client(
        "perf-http", "perf_analyzer HTTP", "perf", OIP, "perf_analyzer.py", ("http",), needs=(_PERF, _WORKS), http=True
    ),
    Client("js-oip", "grpc-js", "grpc-js", OIP, "grpc_js.py", needs=(_NODE,)),
    Client("buf-oip", "buf curl", "buf", OIP, "buf_curl.py", needs=(_BUF,)),
    Client("tfs-stubs", "tensorflow-serving-api", "tensorflow-serving-api", TFS, "tfs_stubs.py"),
    Client("requests", "requests (REST)", "requests", TFS, "http_requests.py", http=True),
    Client("kserve-v1", "kserve REST v1", "kserve", TFS, "kserve_v1.py", python=_KSERVE, http=True),
    Client("perf-tfs", "perf_analyzer gRPC", "perf", TFS, "perf_analyzer.py", ("tfserving",), needs=(_PERF, _WORKS)),
    Client("js-tfs", "grpc-js", "grpc-js", TFS, "grpc_js.py", ("--tfs",), needs=(_NODE,)),
    Client("buf-tfs", "buf curl", "buf", TFS, "buf_curl.py", ("--tfs",), needs=(_BUF,)),
)


@dataclass(frozen=True)
class Note:
    """Cells, by patterns, and why they are not ok."""

    clients: str
    rows: str
    places: str
    reason: str

    def covers(self, client: Client, row: str, place: str) -> bool:
        """Whether a cell is among them."""
        told = ((self.clients, client.id), (self.rows, row), (self.places, place))
        return all(any(fnmatchcase(value, pattern) for pattern in patterns.split()) for patterns, value in told)


#: What perf_analyzer does not do, whatever it speaks.
_LOAD = (
    "live ready health server_metadata model_* repository_* shared_* out* cla* request_id *labels priority timeout* "
    "deadline cancel* datatype_* unknown_o* wrong_* missing_* batch_* zero_* reserved_*"
)
#: The client has no such call, or the place no such service. The first that covers a cell counts.
NOT_APPLICABLE = (
    Note("triton-http kserve-rest perf-http requests kserve-v1", "*", "worker", "a worker speaks gRPC alone"),
    Note(
        "*",
        "versions_and_labels status_of_all_versions reload_error_inside",
        "worker",
        "a worker serves deployments, each with one version; names with several, and labels, are the gateway's",
    ),
    Note("triton-* kserve-* perf-*", "health reflection", "*", "the client has no call for it"),
    Note("triton-grpc triton-aio perf-grpc", "infer_typed", "*", "the client sends contents raw alone"),
    Note("triton-*", "reserved_parameter", "*", "the client refuses it itself and sends nothing"),
    Note("triton-http kserve-rest", "*stream*", "*", "the client has no call that streams"),
    Note("triton-http", "cancellation", "*", "the client cannot leave a call that is under way"),
    Note(
        "kserve-*",
        "model_config model_statistics repository_index shared_memory_refused *stream*",
        "*",
        "its contract has no such method",
    ),
    Note("kserve-rest", "server_metadata model_metadata repository_load", "*", "the client has no call for it"),
    Note("kserve-rest", "version_number versions_and_labels unknown_version", "*", "the client sends no version"),
    Note("kserve-rest", "compression_*", "*", "the client compresses no request"),
    Note("kserve-grpc", "compression_*", "*", "the client has no option for it"),
    Note("kserve-grpc kserve-rest", "datatype_BF16", "*", "the client knows no BF16"),
    Note(
        "perf-grpc",
        f"{_LOAD} stream_* *_token",
        "*",
        "the client measures load and has no option for it; metadata, configuration and statistics it asks in each run",
    ),
    Note(
        "perf-http",
        f"{_LOAD} compression_* *stream*",
        "*",
        "the client measures load and has no option for it; metadata, configuration and statistics it asks in each run",
    ),
    Note(
        "js-oip buf-oip",
        "shared_memory_refused",
        "*",
        "reflection names the methods that are served, and these are not",
    ),
    Note("buf-*", "deadline cancellation compression_*", "*", "the client has no option for it"),
    Note("tfs-stubs js-tfs buf-tfs", "predict_rows", "*", "a form of JSON over HTTP"),
    Note(
        "requests kserve-v1",
        "predict_content predict_repeated_value",
        "*",
        "a form of the tensor message of gRPC",
    ),
    Note(
        "requests kserve-v1", "output_* unknown_output metadata_field_unknown", "*", "the JSON form has no field for it"
    ),
    Note("requests kserve-v1", "multi_inference reload_*", "*", "the HTTP form has no such method"),
    Note("kserve-v1", "predict_values", "*", "the client reads the rows' form"),
    Note(
        "kserve-v1",
        "version_number versions_and_labels unknown_version unknown_label",
        "*",
        "the client sends no version",
    ),
    Note("kserve-v1", "classify regress metadata status*", "*", "the client has no call for it"),
    Note("kserve-v1", "compression_*", "*", "the client compresses no request"),
    Note(
        "perf-tfs",
        "predict_content predict_rows predict_rep* output_* version* signature ensemble deadline cancel* large compr* "
        "datatype_* classify regress multi* metadata* status* reload* unknown_[!m]* missing* wrong* batch* zero* "
        "*_token",
        "*",
        "the client measures load and has no option for it",
    ),
)
#: What a client can call and does not get. These tests must fail: one that does not is to be taken out of here.
CANNOT = (
    Note(
        "requests kserve-v1",
        "large",
        "gateway",
        "4.8 million numbers are more JSON than the limit of 16 MiB ([http.md](http.md)); binary tensors are not",
    ),
    Note("kserve-rest", "datatype_BYTES", "gateway", "the client reads BYTES as UTF-8 and fails at any other"),
)


def rows() -> dict[str, tuple[str, ...]]:
    """Family -> its rows."""
    sys.path.insert(0, str(SCRIPTS))
    import rows_oip
    import rows_tfs

    return {OIP: tuple(rows_oip.ROWS), TFS: tuple(rows_tfs.ROWS)}


def cells() -> Iterator[tuple[Client, str, str]]:
    """Every cell: client, place, row."""
    table = rows()
    for client in CLIENTS:
        for place in PLACES:
            for row in table[client.family]:
                yield client, place, row


def not_applicable(client: Client, row: str, place: str) -> Note | None:
    """Why a cell is not run."""
    return next((note for note in NOT_APPLICABLE if note.covers(client, row, place)), None)


def cannot(client: Client, row: str, place: str) -> Note | None:
    """Why a cell that is run is not ok."""
    return next((note for note in CANNOT if note.covers(client, row, place)), None)
