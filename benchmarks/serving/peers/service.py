"""A FastAPI service around one index: POST /search {"vector": [..], "k": 100}.

Runs in the peers' environment under uvicorn with uvloop and httptools. The search is called in the
event loop: with as many processes as cores a thread pool only adds to its time. The answer goes out
through orjson, without validation.
"""

import json
import os
from pathlib import Path

import numpy as np
import orjson
from engines import ENGINES
from fastapi import FastAPI, Request, Response

library, directory = os.environ["PEER_LIBRARY"], Path(os.environ["PEER_DIRECTORY"])
vectors = np.load(directory / "vectors.npy", mmap_mode="r")
engine = ENGINES[library].load(directory / f"{library}.index", vectors.shape[1])
engine.set_ef(json.loads((directory / f"{library}.json").read_text())["ef"])
item_ids = [f"i{row}" for row in range(len(vectors))]

app = FastAPI()


@app.post("/search")
async def search(request: Request) -> Response:
    """The ids and scores of the nearest items."""
    body = orjson.loads(await request.body())
    rows, scores = engine.search(np.array(body["vector"], np.float32), body["k"])
    answer = {"item_ids": [item_ids[row] for row in rows], "scores": scores}
    return Response(
        orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json"
    )
