"""What a recommendation is compared with: a FastAPI route that makes one indexed SELECT and answers JSON.

`python benchmarks/service_bare.py URL` serves it as `fa-tune serve` serves, and prints its address.
"""

from __future__ import annotations

import socket
import sys
from typing import Any

import sqlalchemy as sa
import uvicorn
from fastapi import FastAPI

from fa_tuner.store.database import parse
from fa_tuner.store.schema import studies

BY_NAME = sa.select(studies.c.name, studies.c.state, studies.c.target, studies.c.updated).where(
    studies.c.name == sa.bindparam("wanted")
)


def application(url: str) -> FastAPI:
    app, engine = FastAPI(), sa.create_engine(parse(url))

    @app.get("/study")
    def study(name: str) -> dict[str, Any]:
        with engine.connect() as connection:
            return dict(connection.execute(BY_NAME, {"wanted": name}).one()._mapping)

    return app


if __name__ == "__main__":
    # without the protocol's number asyncio leaves Nagle's algorithm on, and each answer waits 40 ms
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        config = uvicorn.Config(
            application(sys.argv[1]), log_level="warning", access_log=False, server_header=False, ws="none"
        )
        uvicorn.Server(config).run(sockets=[listener])
