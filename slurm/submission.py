"""Submits a script once, even if sbatch's answer is late or lost.

A busy slurmctld may accept a job and answer too late. So each submission has a token, which goes into the job's
comment and environment. Before sbatch is called again, the queue is searched for the token. A duplicate that
comes to light later can be told by its token, too: `verst.launcher.slurm.jobs` lets one job of each token work.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shlex
from pathlib import Path

from verst.slurm.programs import QUICK, NoAnswer, Patience, SlurmError, call, call_once, cancel

TOKEN = "VERST_SUBMISSION"  # the variable with the token, in a job's environment
_COMMENT = re.compile(r"^#SBATCH --comment=(.*)$", re.MULTILINE)


def new_token() -> str:
    """A token for one submission."""
    return f"verst-{secrets.token_hex(6)}"


def own_token() -> str:
    """The token of the job that this process runs in; "" if it has none."""
    return os.environ.get(TOKEN, "")


def sbatch_command(script: Path, text: str, token: str, *options: str) -> list[str]:
    """The command that submits a script with this `text`. Its environment has the token, too, as TOKEN."""
    comment = " ".join([*_comment(text), token])
    return ["sbatch", "--parsable", f"--comment={comment}", *options, str(script)]


def submit(script: Path, *options: str, token: str | None = None, patience: Patience = QUICK) -> str:
    """Submits a script. `options` override the script's. Returns the id of the job or array, without an index.

    Raises NoAnswer when slurmctld did not answer and no job with the token shows in the queue. One may still
    show up later. Raises another SlurmError when Slurm refuses the job.
    """
    token = token or new_token()
    command = sbatch_command(script, script.read_text(), token, *options)
    pauses = patience.pauses()
    in_doubt = False
    while True:
        try:
            job = _job_id(call_once(command, variables={TOKEN: token}))
        except NoAnswer as error:
            in_doubt = True
            waited = patience.waits(pauses, error)
            if (found := _only_one(token, patience)) is not None:
                return found
            if not waited:
                raise _unknown(error, token) from error
            continue
        if job is None:
            job = _only_one(token, patience)
        if job is None:
            raise SlurmError(f"{shlex.join(command)}: the answer has no job id, and squeue shows no such job")
        if in_doubt:  # an earlier call may have been obeyed after we looked
            with contextlib.suppress(SlurmError):
                cancel([other for other in jobs_of(token) if other != job])
        return job


def jobs_of(token: str, patience: Patience = QUICK) -> list[str]:
    """The ids of this user's jobs with this token that have not ended. Raises SlurmError."""
    lines = call(["squeue", "-h", "--me", "-o", "%i|%k"], patience=patience).splitlines()
    found = [line.partition("|") for line in lines]
    ids = {re.split("[_+]", job.strip())[0] for job, _, comment in found if token in comment.split()}
    return sorted(ids, key=int)


def _only_one(token: str, patience: Patience) -> str | None:
    """The job with this token, or None. Cancels all but the first. Raises NoAnswer when Slurm does not answer."""
    try:
        jobs = jobs_of(token, patience)
    except NoAnswer as error:
        raise _unknown(error, token) from error
    cancel(jobs[1:])
    return jobs[0] if jobs else None


def _unknown(error: NoAnswer, token: str) -> NoAnswer:
    return NoAnswer(
        f"{error}; whether a job was submitted is not known. One would have the comment {token}, and would end by "
        "itself"
    )


def _comment(text: str) -> list[str]:
    """The recipe's own comment, which the script has."""
    match = _COMMENT.search(text)
    return shlex.split(match[1]) if match else []


def _job_id(answer: str) -> str | None:
    """The id in the answer of `sbatch --parsable`: "1234" or "1234;cluster". A site's wrapper may print more lines."""
    ids = re.findall(r"^\s*(\d+)(?:;\S*)?\s*$", answer, re.MULTILINE)
    return ids[-1] if ids else None
