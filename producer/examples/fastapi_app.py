"""A web service before a fleet: ``uvicorn fastapi_app:app`` in this folder, with REDIS_URL where there is a fleet.

    curl -X POST localhost:8000/transcribe -H 'content-type: application/json' -d '{"audio": "/data/call.wav"}'

Whoever can reach it names what workers read: set WHISPER_AUDIO_ROOTS and WHISPER_URL_HOSTS there (see the README).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from producer import AsyncClient, CallTimeoutError, FleetError, Transcript, TranscriptionError, UsageError

ANSWER_SECONDS = 600.0
#: What fails for the fleet's sake: another try may succeed.
FAULTS_OF_THE_FLEET = {
    "decode_unavailable",
    "engine_error",
    "engine_timeout",
    "internal_error",
    "worker_error",
    "worker_stopping",
}


class Recording(BaseModel):
    """What to transcribe: a path or URL that the workers can read."""

    audio: str
    language: str = "auto"
    timestamps: bool = False


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """One client for all requests."""
    async with AsyncClient() as client:
        app.state.client = client
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/transcribe")
async def transcribe(recording: Recording, request: Request) -> Transcript:
    """The transcript of a recording."""
    client: AsyncClient = request.app.state.client
    handle = await client.transcribe(recording.audio, language=recording.language, timestamps=recording.timestamps)
    try:
        return await handle.result(ANSWER_SECONDS)
    except CallTimeoutError:
        await handle.cancel()
        raise


@app.exception_handler(TranscriptionError)
@app.exception_handler(FleetError)
async def explain(_: Request, error: TranscriptionError | FleetError) -> JSONResponse:
    """422 for what is wrong with the recording or the request, 503 for a fleet that cannot do it now."""
    is_theirs = isinstance(error, TranscriptionError | UsageError) and error.type not in FAULTS_OF_THE_FLEET
    return JSONResponse({"type": error.type, "message": error.message}, 422 if is_theirs else 503)
