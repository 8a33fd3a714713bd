"""Runs in tritonclient's own environment: its ModelConfig reads what we write, and writes what we read.

``python triton_configs.py read FILE`` prints a configuration as JSON; ``python triton_configs.py write FILE`` turns the
JSON of standard input into text.
"""

from __future__ import annotations

import sys
from pathlib import Path

from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

action, file = sys.argv[1], Path(sys.argv[2])
config = model_config_pb2.ModelConfig()
if action == "read":
    text_format.Parse(file.read_text(), config)
    print(json_format.MessageToJson(config, preserving_proto_field_name=True))
else:
    json_format.Parse(sys.stdin.read(), config)
    file.write_text(text_format.MessageToString(config))
