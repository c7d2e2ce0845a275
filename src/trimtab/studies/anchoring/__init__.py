"""The published experiments on anchoring, and those that they left to do.

`catalogue` lists them, `run` runs one and writes its result files, `gates` says what each has to
show. Pages are made from the result files by `report/`.
"""
