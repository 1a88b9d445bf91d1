"""`python -m benchmarks.chaos`: the proof that nothing is lost, whatever is killed, stopped, filled up or flushed.

Each fault hits a job of its own in the middle: `faults` says what happens, `schedule` when and to whom, `stage` starts
the processes as users start them, `job` plays the job, `judge` counts, `report` shows. `in_worker` is loaded into the
workers and writes down what runs there; `witness` reads it.
"""
