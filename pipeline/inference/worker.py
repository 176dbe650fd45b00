"""A vLLM engine behind a pipe: `python -m pipeline.inference.worker MODEL ENGINE_ARGS_JSON LOAD_JSON [SERVER_JSON]`.

LOAD_JSON has the fields of kv_cache.Load: what it will be asked.
With SERVER_JSON, the settings teacher.server, its servers answer, and no engine is started.

One JSON object a line. It writes `{"context_tokens": ..., "start_s": ...}` when it is ready, then for each line
`{"requests": [Request fields, ...], "timed": bool}` on standard input one line
`{"answers": [{"request_id", "token_ids", "finish_reason", "first_token_s", "total_s"}, ...], "elapsed_s": ...}`.
It ends with its input. Logs go to standard error.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from pipeline import config, quiet
from pipeline.errors import UserError
from pipeline.inference.engine import Completion, Engine, Request
from pipeline.inference.kv_cache import Load
from pipeline.inference.servers import TeacherServers
from pipeline.machine import hardware
from pipeline.models import lookup


def serve(model: str, engine_args: dict[str, Any], load: Load, server: config.Server | None, replies: TextIO) -> None:
    """Answer until standard input ends."""
    began = time.monotonic()
    try:
        if server is None:
            engine = Engine(model, engine_args, load=load)
        else:
            engine = TeacherServers(server, lookup.Model(model, Path(model)).vocab_size())
        _reply(replies, {"context_tokens": engine.max_model_len, "start_s": time.monotonic() - began})
        for line in sys.stdin:
            asked = json.loads(line)
            began = time.perf_counter()
            requests = (Request(**fields) for fields in asked["requests"])
            if isinstance(engine, Engine):
                answers = list(engine.answers(requests, asked["timed"]))
            else:  # servers report an answer as a whole
                answers = list(engine.answers(requests))
            elapsed_s = time.perf_counter() - began
            _reply(replies, {"answers": [_plain(a) for a in answers], "elapsed_s": elapsed_s})
    except UserError as error:
        _reply(replies, {"error": str(error)})


def _plain(answer: Completion) -> dict[str, Any]:
    fields = ("token_ids", "finish_reason", "first_token_s", "total_s")
    return {"request_id": answer.request.request_id, **{name: getattr(answer, name) for name in fields}}


def _reply(replies: TextIO, data: dict[str, Any]) -> None:
    replies.write(json.dumps(data) + "\n")
    replies.flush()


if __name__ == "__main__":
    quiet.libraries()
    hardware.die_with_parent()  # it would find out only when it has answered all it was asked
    # Libraries print to standard output as they please: keep it for replies, and send theirs to standard error.
    own_stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    servers = config.Server.model_validate_json(sys.argv[4]) if len(sys.argv) > 4 else None
    try:
        serve(sys.argv[1], json.loads(sys.argv[2]), Load(**json.loads(sys.argv[3])), servers, own_stdout)
    except KeyboardInterrupt:  # whoever asked ends too, and says so
        raise SystemExit(130) from None
