"""Which queue a job goes to, and what no live worker can do: refused at submission, in words that name what can."""

from __future__ import annotations

from collections.abc import Sequence

from producer.errors import UsageError
from workers.app import queue_name
from workers.languages import AUTO, PER_WINDOW
from workers.models import model_slug
from workers.presence import Presence


def choose_queue(workers: Sequence[Presence], task: str, language: str, model: str | None) -> str:
    """The queue whose live workers have ``model`` (None: the fleet's default), can do ``task`` and know ``language``.

    Without live workers the plain queue of the task is taken: its rows wait. Raises UsageError for what none can do.
    """
    queues = queues_for(task, model)
    plain = queues[0]
    if not workers:
        return plain
    serving = [worker for worker in workers if set(queues) & set(worker.queues)]
    if not serving:
        served = sorted({queue for worker in workers for queue in worker.queues})
        raise UsageError(f"no live worker serves the queue {plain}: there are {_listed(served)}")
    if model is not None:
        having = [worker for worker in serving if _is(worker, model)]
        if not having:
            models = sorted({worker.model for worker in workers})
            raise UsageError(f"--model {model}: no live worker has it, there are {_listed(models)}")
        serving = having
    able = [worker for worker in serving if task in worker.tasks]
    if not able:
        tasks = sorted({f"{task} ({worker.model})" for worker in serving for task in worker.tasks})
        raise UsageError(f"--task {task}: no live worker can, there are {_listed(tasks)}")
    if language not in (AUTO, PER_WINDOW) and not any(language in worker.languages for worker in able):
        raise UsageError(f"--language {language}: no live worker knows it; their models are {_listed(_models(able))}")
    others = [] if model is None else _models([one for one in _serving(workers, plain) if not _is(one, model)])
    if others:
        queues = queues[1:]  # from the plain queue anybody might take the rows
    found = next((queue for worker in able for queue in queues if queue in worker.queues), None)
    if found is None:
        raise UsageError(
            f"--model {model}: {_listed(others)} serves the queue {plain} too: "
            f"start workers with -Q {queues[0]} for one of the two, so that no job has texts of both"
        )
    return found


def queue_of_job(workers: Sequence[Presence], task: str, language: str, model: str | None) -> str:
    """`choose_queue` for a job, whose rows are all done by one model. Raises UsageError."""
    queue = choose_queue(workers, task, language, model)
    check_one_model(workers, queue)
    return queue


def check_one_model(workers: Sequence[Presence], queue: str) -> None:
    """Raise UsageError where live workers with several models take from ``queue``: a step is made by one."""
    serving = _serving(workers, queue)
    models = {model_slug(worker.model): worker.model for worker in serving}
    if len(models) > 1:
        raise UsageError(
            f"the queue {queue} is served with {_listed(sorted(models.values()))}, and a step is made by one model: "
            f"stop the workers of the others, or start them with a queue of their own (-Q {queue}.{min(models)})"
        )


def _serving(workers: Sequence[Presence], queue: str) -> list[Presence]:
    """The workers that take from ``queue``."""
    return [worker for worker in workers if queue in worker.queues]


def serves(worker: Presence, queues: Sequence[str], model: str) -> bool:
    """Whether a worker has ``model`` and takes from one of ``queues``."""
    return bool(set(queues) & set(worker.queues)) and _is(worker, model)


def _is(worker: Presence, model: str) -> bool:
    return model_slug(worker.model) == model_slug(model)


def queues_for(task: str, model: str | None) -> list[str]:
    """The queues that a job's rows may be in: the plain one of its task first, and that of its model."""
    plain = queue_name("translate" if task == "translate" else "transcribe")
    return [plain] if model is None else [plain, f"{plain}.{model_slug(model)}"]


def _models(workers: Sequence[Presence]) -> list[str]:
    return sorted({worker.model for worker in workers})


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"
