"""`make bench-rows`: what a row costs beside its transcription, and whether that stays the same in a large job.

`parts` are the processes that are measured, `stage` runs them on one job, `report` makes figures and bars of it, `plot`
draws the figures.
"""
