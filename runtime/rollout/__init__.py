"""The rollout side of a run: worker processes that generate, score and deliver groups of samples.

`worker.py` is the process and its episode loop, and `episodes.py` turns a prompt into a scored group. `generate.py` has
the default generate function and the parts for your own, `sample_check.py` checks what it made, `filters.py` has the
group filters, and `config.py` the recipe's `rollout` section. `fault_report.py` tells the controller of a hook that
cannot be loaded. `weight_receiver.py` answers the calls of a weight round, with `folder_reader.py` for versions in a
folder. `admission.py` lets an engine that shares its GPUs start at the right time. `engine/` runs SGLang servers and
calls them; `inside_sglang/` is the code that runs in SGLang's own processes.
"""
