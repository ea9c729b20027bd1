"""Shows that the test of every fault fails when the guard that holds the fault is taken out of the code.

    python tests/guards.py                 every guard
    python tests/guards.py --only lease    those with this word in their guard, file, faults or tests
    python tests/guards.py --write         and brings the table of faults/README.md up to date

Works in a copy of the working tree. The tests are shown to pass there first; then each guard is removed or turned
round, the tests that must fail without it are run, each in a process of its own, and the file is put back. A test that
goes on for much longer than it takes otherwise hangs, which is to fail. Exit code 1 if any test still passes.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import psutil

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "tests" / "faults" / "README.md"
MARKED = re.compile(r"(<!-- made by guards.py -->\n).*?(\n<!-- end of guards -->)", re.S)
HEAD = ["| guard | file | what it holds | without it |", "| --- | --- | --- | --- |"]
MARK = "RAYGRID_GUARDS"
"""environment variable of every process that is started here, by which what is left of them is found"""
PATIENCE_S = 30.0
"""a test hangs that takes so long and twice its usual time"""
SECURITY = "security: "
"""begins what a security test holds, which is no row of the table of faults"""


@dataclass(frozen=True)
class Guard:
    """A piece of code that keeps a promise, and the tests that fail without it."""

    what: str
    file: str
    text: str
    """stands once in the file"""
    instead: str
    """the guard removed, or turned round"""
    holds: Mapping[str, str]
    """fault (a row of the table of faults, or `security: ...`) -> the test that must fail, under tests/"""


STORE = "faults/test_faults_store.py::"
TWO = "faults/test_faults_two.py::"
TRAINING = "faults/test_faults_training.py::"
SAFE = "faults/test_faults_security.py::"
TRUST = "cluster/test_trust.py::"
LAWS = "test_laws.py::"
SERVER = "track/test_server.py::"
EMBEDDED = "track/test_embedded.py::"
ANY_REQUEST = f"{STORE}test_every_operation_outlives_a_fault"
DEAD_OWNER = f"{LAWS}test_a_dead_process_gives_its_lease_back_at_once_a_living_one_keeps_it"
SILENT_OWNER = f"{LAWS}test_a_silent_lease_of_another_host_dies_by_the_readers_clock"
SPOILT = f"{STORE}test_what_stays_damaged_is_refused"
SLOW_LEASE = f"{STORE}test_a_call_that_takes_minutes_silences_no_other_lease"
FULL_CACHE = f"{STORE}test_a_full_cache_concerns_the_store_and_not_the_cell"
FULL_DISK = f"{STORE}test_a_full_local_disk"
EXPIRED = f"{STORE}test_credentials_that_expire_stop_the_grid_with_one_message_and_lose_nothing"
BAD_CHECKPOINT = f"{TRAINING}test_a_wrong_checkpoint_fails_its_dependants_and_nothing_else"
BAD_RECORD = f"{TRAINING}test_a_damaged_record_is_named_and_never_believed"
BAD_SERVER = f"{SERVER}test_a_server_that_refuses"
BAD_NOTE = f"{TRUST}test_a_note_that_another_user_can_have_written_is_not_believed"
REMEMBERED = f"{TRUST}test_what_ray_up_remembers"
OTHERS_FOLDER = f"{TRUST}test_folders_of_other_users_are_left_alone"

GUARDS = (
    # --- leases ------------------------------------------------------------------------------------------------------
    Guard(
        "the lease of a dead process of this host is dead at once",
        "raygrid/store.py",
        'if owner["host"] == self._me["host"] and not _alive(owner["pid"], owner["started"]):',
        "if False:",
        {
            "the driver, which trains here (SIGKILL, SIGTERM)": DEAD_OWNER,
            "the raylet of a local Ray (SIGKILL)": DEAD_OWNER,
            "all processes of a Ray node but the driver (SIGKILL)": DEAD_OWNER,
            "driver, MLflow server and S3 server at once (SIGKILL)": DEAD_OWNER,
        },
    ),
    Guard(
        "a lease that falls silent dies by the reader's clock",
        "raygrid/store.py",
        "return now - since >= LEASE_DEAD_S",
        "return False",
        {"a worker and the laptop that launched, both lost": SILENT_OWNER},
    ),
    Guard(
        "a lease that lives is not taken over",
        "raygrid/store.py",
        "if not self._dead(path, text):",
        "if False:",
        {
            "two launches of one study at once, in a folder": "cluster/test_two_launches.py::test_in_a_folder",
            "two launches of one study at once, on S3": "cluster/test_two_launches.py::test_on_s3",
        },
    ),
    Guard(
        "every lease has a thread that keeps it alive",
        "raygrid/store.py",
        "threading.Thread(target=self._keep, args=(path, held)",
        "threading.Thread(target=str, args=(path,)",
        {
            "a lease's put that takes minutes": f"{SLOW_LEASE}[put]",
            "a lease's delete that takes minutes": f"{SLOW_LEASE}[delete]",
        },
    ),
    Guard(
        "a dead lease is read again before it is removed",
        "raygrid/store.py",
        "if self.store.find(path) != text:",
        "if False:",
        {
            "two that take over one dead lease": f"{STORE}test_who_comes_second_does_not_remove_the_lease_that_the_"
            "first_has_just_made"
        },
    ),
    Guard(
        "when a process started is reckoned from the boot, not from the wall clock",
        "raygrid/store.py",
        'return int(fields[19]) / os.sysconf("SC_CLK_TCK")',
        "return psutil.Process(pid).create_time()",
        {"a clock that is set, for leases": f"{STORE}test_a_set_clock_makes_no_lease_dead"},
    ),
    Guard(
        "nothing of Ray's is collected while Ray shuts down",
        "raygrid/grid.py",
        "gc.collect()\n    gc.disable()",
        "pass",
        {
            "a thread that collects rubbish while Ray shuts down": f"{TRAINING}test_leaving_ray_outlives_a_thread_that_"
            "collects_rubbish"
        },
    ),
    Guard(
        "leases age by the monotonic clock",
        "raygrid/store.py",
        "now = time.monotonic()\n        seen, since",
        "now = time.time()\n        seen, since",
        {"a clock that jumps while a study trains": f"{STORE}test_clock_jumps_change_no_result"},
    ),
    Guard(
        "an object that is created after all, its answer lost, is known as one's own",
        "raygrid/store.py",
        "if self.is_folder or self.find(path) != data:",
        "if True:",
        {"the answer to taking a lease is lost": f"{STORE}test_a_create_whose_answer_was_lost_is_known_as_ones_own"},
    ),
    # --- object storage ----------------------------------------------------------------------------------------------
    Guard(
        "time alone bounds how often a request is made again",
        "raygrid/store.py",
        '"max_retries": 1000,',
        '"max_retries": 8,',
        {
            "an S3 server that is away for most of the bound": f"{STORE}test_an_outage_within_the_bound_is_waited_for"
            "[503 slow down]"
        },
    ),
    Guard(
        "requests that fail are made again, with growing waits",
        "raygrid/store.py",
        '"max_retries": 1000,',
        '"max_retries": 0,',
        {
            "a request to S3: 500": f"{ANY_REQUEST}[500]",
            "a request to S3: 503 slow down": f"{ANY_REQUEST}[503 slow down]",
            "the S3 server (SIGKILL, back after a second)": f"{ANY_REQUEST}[500]",
        },
    ),
    Guard(
        "calls that broke off, or that nobody dares to repeat, are begun again",
        "raygrid/store.py",
        "AGAIN = 4\n",
        "AGAIN = 1\n",
        {
            "a request to S3: reset before": f"{ANY_REQUEST}[reset before]",
            "a request to S3: reset after": f"{ANY_REQUEST}[reset after]",
            "a request to S3: reset in upload": f"{ANY_REQUEST}[reset in upload]",
            "a request to S3: reset in download": f"{ANY_REQUEST}[reset in download]",
            "a request to S3: cut": f"{ANY_REQUEST}[cut]",
            "requests to the S3 server (5xx, resets, cut or wrong answers)": f"{ANY_REQUEST}[cut]",
            "every eighth request to S3 while a study trains": f"{STORE}test_a_study_in_a_storm_of_faults[1]",
        },
    ),
    Guard(
        "a call that fails again and again ends with one message",
        "raygrid/store.py",
        "if attempt == AGAIN or time.monotonic() - begun > AGAIN_S:\n                    raise",
        "if False:\n                    raise",
        {
            "an S3 server that is not there": f"{STORE}test_a_store_that_is_not_there_is_given_up_within_the_bound",
            "a file that breaks off again and again": f"{STORE}test_a_file_that_breaks_off_is_fetched_again_as_"
            "often_as_anything_else[4]",
        },
    ),
    Guard(
        "a request that hears nothing is given up and made again",
        "raygrid/store.py",
        '"read_timeout": timedelta(seconds=SILENCE_S),',
        '"read_timeout": timedelta(minutes=30),',
        {"a request to S3: silence": f"{ANY_REQUEST}[silence]"},
    ),
    Guard(
        "bytes are compared with their sha256",
        "raygrid/store.py",
        "if sha256 is None or sha256_of(data) == sha256:",
        "if True:",
        {
            "a request to S3: short": f"{ANY_REQUEST}[short]",
            "a request to S3: flip": f"{ANY_REQUEST}[flip]",
        },
    ),
    Guard(
        "fetched files are compared with their sha256",
        "raygrid/store.py",
        "if seen.hexdigest() != sha256:",
        "if False:",
        {
            "an object of S3 that stays damaged: short": f"{SPOILT}[short]",
            "an object of S3 that stays damaged: flip": f"{SPOILT}[flip]",
        },
    ),
    Guard(
        "whatever a user can do something about ends in one line",
        "raygrid/launch.py",
        "except (RaygridError, OSError, KeyboardInterrupt) as error:",
        "except KeyboardInterrupt as error:",
        {
            "credentials of S3 that expire": f"{EXPIRED}[8-in-process]",
            "a full disk under a launch: cache": f"{FULL_DISK}[cache-200k]",
            "a full disk under a launch: out": f"{FULL_DISK}[out-24k]",
        },
    ),
    Guard(
        "a store that refuses a trial on Ray ends the grid",
        "raygrid/grid.py",
        'tune.report({"events": events, "trouble": str(error)})\n        return',
        "raise",
        {"credentials of S3 that expire": f"{EXPIRED}[45-ray]"},
    ),
    Guard(
        "a store is tried before anything is trained",
        "raygrid/launch.py",
        "    store.check()\n",
        "",
        {
            "a bucket that may not be written": f"{STORE}test_a_read_only_bucket_is_found_before_anything_is_trained",
        },
    ),
    Guard(
        "a bucket that is not there is named",
        "raygrid/store.py",
        'raise StoreError(f"store {self.url}: no such bucket, or no right to it") from None',
        "raise",
        {
            "a bucket that is not there": f"{STORE}test_a_bucket_that_is_not_there_is_named_before_anything_is_trained",
        },
    ),
    Guard(
        "one launch at a time writes into a results folder",
        "raygrid/launch.py",
        "        with locked(folder / WRITING):\n            announce(",
        "        if True:\n            announce(",
        {
            "two launches that write their reports at once": f"{TWO}test_two_launches_write_their_reports_one_after_"
            "the_other"
        },
    ),
    Guard(
        "Parquet is written under a name of one's own, then renamed",
        "raygrid/export.py",
        'path.with_name(f".{path.stem}-{uuid4().hex[:8]}.part")',
        'path.with_suffix(".part")',
        {"two launches that write Parquet at once": f"{TWO}test_two_exports_into_one_folder"},
    ),
    Guard(
        "what was half fetched is removed",
        "raygrid/store.py",
        "            if name is not None:\n                Path(name).unlink(missing_ok=True)",
        "            pass",
        {
            "a worker's full disk, at write": f"{FULL_CACHE}[write]",
            "a worker's full disk, at replace": f"{FULL_CACHE}[replace]",
        },
    ),
    Guard(
        "a full disk under a fetched file is the machine's, and said so",
        "raygrid/store.py",
        '        except OSError as error:\n            raise StoreError(f"{local.parent}: cannot',
        '        except ZeroDivisionError as error:\n            raise StoreError(f"{local.parent}: cannot',
        {"a worker's full disk, at mkstemp": f"{FULL_CACHE}[mkstemp]"},
    ),
    Guard(
        "a full disk under a file of the cache concerns the store, not the cell",
        "raygrid/data/cache.py",
        '    except OSError as error:\n        raise StoreError(f"{path.parent}: cannot',
        '    except ZeroDivisionError as error:\n        raise StoreError(f"{path.parent}: cannot',
        {"a worker's full disk, at mkstemp": f"{FULL_CACHE}[mkstemp]"},
    ),
    Guard(
        "a store that refuses ends the cohort, not its cells one by one",
        "raygrid/train.py",
        "self._fail(cell, str(error))\n        except (StoreError, Interrupted):",
        "self._fail(cell, str(error))\n        except Interrupted:",
        {"a store without room for a checkpoint": f"{STORE}test_a_store_that_takes_no_checkpoint_ends_the_grid"},
    ),
    Guard(
        "whatever the object storage raises is one line",
        "raygrid/store.py",
        'raise (_Again if again else StoreError)(f"store: {self.uri(path)}: {_plain(error)}") from None',
        "raise",
        {"a full disk under a launch: store": f"{FULL_DISK}[store-450k]"},
    ),
    Guard(
        "half-written files are swept",
        "raygrid/store.py",
        "        self._sweep(path)\n",
        "",
        {
            "half-written files of killed processes": f"{STORE}test_half_written_files_are_swept_when_nobody_can_be_"
            "writing_them"
        },
    ),
    Guard(
        "half-written files are left alone while somebody may be writing them",
        "raygrid/store.py",
        "if _TEMPORARY.search(left.name) and clock - left.stat().st_mtime > STALE_S:",
        "if _TEMPORARY.search(left.name):",
        {
            "half-written files of killed processes": f"{STORE}test_half_written_files_are_swept_when_nobody_can_be_"
            "writing_them"
        },
    ),
    Guard(
        "a record is created if absent, and never replaced",
        "raygrid/store.py",
        'mode="create", use_multipart=False',
        'mode="overwrite", use_multipart=False',
        {
            "launches, kills, duplicates and damage in any order (Hypothesis)": "faults/test_faults_machine.py::"
            "test_whatever_happens_the_store_ends_the_same"
        },
    ),
    # --- training ----------------------------------------------------------------------------------------------------
    Guard(
        "a network that fails leaves the loop, its mates go on",
        "raygrid/train.py",
        "self.bench.trace(cell, traceback.format_exc())",
        "raise",
        {
            "a base that cannot be trained": f"{TRAINING}test_a_failed_base_blocks_its_dependants_and_nothing_else",
            "a network that fails among its mates": f"{LAWS}test_a_failing_cell_fails_alone",
        },
    ),
    Guard(
        "what waits for a base that diverged is blocked for good",
        "raygrid/grid.py",
        'lasting=self.outcomes.get(cell.base.address) == "diverged"',
        "lasting=False",
        {"a base that diverges": f"{TRAINING}test_a_diverged_base_blocks_its_dependants_for_good"},
    ),
    Guard(
        "what waits for a base that failed may be trained by the next launch",
        "raygrid/grid.py",
        'self.store, lasting=self.outcomes.get(cell.base.address) == "diverged")',
        "self.store, lasting=True)",
        {"a base that cannot be trained": f"{TRAINING}test_a_failed_base_blocks_its_dependants_and_nothing_else"},
    ),
    Guard(
        "what a cohort shares and cannot have fails its cells, with the step",
        "raygrid/train.py",
        "self.bench.trace(member.cell, traceback.format_exc())",
        "raise",
        {
            "an image that cannot be read in training": f"{TRAINING}test_an_image_that_cannot_be_read_fails_the_cells_"
            "that_need_it"
        },
    ),
    Guard(
        "a trial that lost its worker is tried again",
        "raygrid/grid.py",
        "FailureConfig(max_failures=execution.retries)",
        "FailureConfig(max_failures=0)",
        {
            "the worker of a trial on Ray (SIGKILL)": f"{TRAINING}test_a_worker_that_hangs_is_ended_and_its_cohort_is_"
            "tried_again"
        },
    ),
    Guard(
        "folders of Tune's that killed drivers left are removed",
        "raygrid/grid.py",
        "shutil.rmtree(old.parent, ignore_errors=True)",
        "pass",
        {"the driver of trials on Ray (SIGKILL)": f"{TRUST}test_folders_that_killed_drivers_left_are_removed"},
    ),
    Guard(
        "the worker of a trial that says nothing is ended",
        "raygrid/grid.py",
        "ray.kill(trial.temporary_state.ray_actor)",
        "pass",
        {"a worker that hangs": f"{TRAINING}test_a_worker_that_hangs_is_ended_and_its_cohort_is_tried_again"},
    ),
    Guard(
        "a trial that is given up is told with the reason",
        "raygrid/grid.py",
        "                elif error:\n",
        "                elif False:\n",
        {
            "a worker that hangs again and again": f"{TRAINING}test_a_worker_that_always_hangs_is_given_up_with_the_"
            "reason"
        },
    ),
    Guard(
        "a base's tensors are compared with its network: names, shapes, types, finite values",
        "raygrid/transplant.py",
        "        check(cell.base, base)\n",
        "",
        {"a base's checkpoint that is not what it says, or a pickle": f"{BAD_CHECKPOINT}[not finite]"},
    ),
    Guard(
        "a base's checkpoint must be of that very network",
        "raygrid/checkpoint.py",
        'if owner not in (None, facts.get("cell")):',
        "if False:",
        {"a base's checkpoint that is not what it says, or a pickle": f"{BAD_CHECKPOINT}[another study]"},
    ),
    Guard(
        "a record's seal is its digest",
        "raygrid/record.py",
        "if data[-length:] != _seal(text):",
        "if False:",
        {"a record that is damaged, forged, or a pickle": f"{BAD_RECORD}[digit]"},
    ),
    Guard(
        "a record must be of the cell where it lies",
        "raygrid/record.py",
        "if cell is not None and record.cell.hash != cell.hash:",
        "if False:",
        {"a record that is damaged, forged, or a pickle": f"{BAD_RECORD}[another cell]"},
    ),
    Guard(
        "a record's checkpoint is named by a sha256 and nothing else",
        "raygrid/record.py",
        'Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None',
        "str | None",
        {"a record that is damaged, forged, or a pickle": f"{BAD_RECORD}[path]"},
    ),
    Guard(
        "progress has a digest of all that is in it",
        "raygrid/checkpoint.py",
        'if facts.pop("sha256") != _seal(tensors, facts):',
        "if False:",
        {"progress that is damaged, or a pickle": f"{TRAINING}test_damaged_progress_starts_again[flipped bit]"},
    ),
    Guard(
        "a loss that is not finite ends its network",
        "raygrid/train.py",
        "if member.stopped is None and bool(bad.any()):",
        "if False:",
        {"a loss that is not finite": f"{LAWS}test_a_loss_that_is_not_finite_is_a_result_and_its_mates_finish"},
    ),
    Guard(
        "a loss no better than guessing counts as diverged",
        "raygrid/member.py",
        "if last >= CHANCE * guess:",
        "if False:",
        {"a loss stuck at that of guessing": f"{LAWS}test_a_loss_of_guessing_is_diverged_and_keeps_its_score"},
    ),
    Guard(
        "a cohort that is too large for the memory runs as two halves",
        "raygrid/train.py",
        "if not _is_out_of_memory(error):",
        "if True:",
        {"memory that runs out": f"{LAWS}test_out_of_memory_runs_the_cohort_as_two_halves"},
    ),
    Guard(
        "of a cohort that ran out of memory nothing is kept",
        "raygrid/train.py",
        "members.clear()",
        "pass",
        {"memory that runs out": f"{LAWS}test_nothing_of_a_cohort_that_ran_out_of_memory_is_kept"},
    ),
    # --- MLflow ------------------------------------------------------------------------------------------------------
    Guard(
        "a run is looked for before one is made",
        "raygrid/track/tracker.py",
        "run = self.server.find(self._experiment, show.CELL, cell.address)",
        "run = None",
        {
            "a launch killed while MLflow is written": f"{EMBEDDED}test_killed_launches_go_on_in_the_same_runs",
            "every third answer of an MLflow server is lost": f"{SERVER}test_lost_answers_make_no_second_run",
        },
    ),
    Guard(
        "of two runs of one thing the younger is deleted",
        "raygrid/track/server.py",
        "for other in runs[1:]:",
        "for other in ():",
        {
            "two MLflow runs of one network": f"{EMBEDDED}test_two_runs_of_a_cell_become_one",
            "two launches that write MLflow at once": f"{EMBEDDED}test_two_launches_at_once",
        },
    ),
    Guard(
        "MLflow's tables are made aside by one process, and put in their place whole",
        "raygrid/track/server.py",
        "                self._make(MlflowClient)\n",
        "                pass\n",
        {
            "two launches that make MLflow's file at once": f"{EMBEDDED}test_two_processes_make_one_file",
            "a launch killed while it makes MLflow's file": f"{EMBEDDED}test_a_file_whose_maker_was_killed_is_made_"
            "again",
        },
    ),
    Guard(
        "a run that is gone is known as such, and made anew",
        "raygrid/track/server.py",
        """if code == "RESOURCE_DOES_NOT_EXIST" or "must be in the 'active' state" in text:""",
        "if False:",
        {"an MLflow run that a user deletes": f"{EMBEDDED}test_runs_deleted_by_a_user_come_back"},
    ),
    Guard(
        "a deleted experiment is named, with the way to restore it",
        "raygrid/track/server.py",
        'if found.lifecycle_stage != "active":',
        "if False:",
        {"an MLflow experiment that a user deletes": f"{EMBEDDED}test_a_deleted_experiment_is_named"},
    ),
    Guard(
        "whatever MLflow raises becomes one line",
        "raygrid/track/server.py",
        "raise self._answer(error) from None",
        "raise",
        {
            "an MLflow file that cannot be written": f"{EMBEDDED}test_places_that_cannot_be_written",
            "a disk of MLflow's that may not be written": "faults/test_faults_mlflow.py::test_mlflow_on_a_bad_disk[may "
            "not be written-readonly database|unable to open database]",
        },
    ),
    Guard(
        "a server that is away is tried again",
        "raygrid/track/tracker.py",
        "self._trouble, wait = str(error), BACKOFF_S[min(tries, len(BACKOFF_S) - 1)]",
        "self._trouble = str(error)\n                return",
        {
            "an MLflow server absent at first, then killed, then back": f"{SERVER}test_a_server_that_is_killed_and_"
            "comes_back",
            "the MLflow server (SIGKILL, back after a second)": f"{SERVER}test_a_choked_connection_pool_is_waited_out",
        },
    ),
    Guard(
        "a choked connection pool counts as a server that is away",
        "raygrid/track/server.py",
        "if _AWAY.search(text):",
        "if False:",
        {
            "an MLflow server whose connection pool is choked (QueuePool)": f"{SERVER}test_a_choked_connection_pool_is_"
            "waited_out"
        },
    ),
    Guard(
        "what waits for MLflow in memory is bounded",
        "raygrid/track/tracker.py",
        "if self._held + len(points) <= HELD_POINTS:",
        "if True:",
        {"an MLflow server that never comes": f"{SERVER}test_a_server_that_never_comes"},
    ),
    Guard(
        "what did not fit into memory comes from the record",
        "raygrid/track/tracker.py",
        "held.fresh([*show.history(record), *live])",
        "held.fresh(live)",
        {
            "an MLflow server away for longer than memory lasts": f"{SERVER}test_what_did_not_fit_in_memory_comes_from_"
            "the_store"
        },
    ),
    Guard(
        "the end of a launch waits for the writer as long as it was told, and no longer",
        "raygrid/track/tracker.py",
        "self._thread.join(timeout_s)",
        "self._thread.join()",
        {"an MLflow server that takes 5 s a call": f"{SERVER}test_a_slow_server"},
    ),
    Guard(
        "the writer holds no lock while it speaks to the server",
        "raygrid/track/tracker.py",
        "                more = self._step()\n",
        "                with self._lock:\n                    more = self._step()\n",
        {
            "an MLflow server that takes 5 s a call, while a study trains": f"{SERVER}test_training_is_kept_for_less_"
            "than_2_percent_of_its_time[False]"
        },
    ),
    Guard(
        "a server that refuses is told from one that is away",
        "raygrid/track/server.py",
        "if _REFUSED.search(text) or code in _REFUSED_CODES:",
        "if False:",
        {
            "an MLflow server that refuses: refuses": f"{BAD_SERVER}[no login]",
            "an MLflow server that refuses: Permission denied": f"{BAD_SERVER}[no permission]",
            "an MLflow server that refuses: Invalid Host header": f"{BAD_SERVER}[another host]",
        },
    ),
    Guard(
        "whatever answers must be MLflow",
        "raygrid/track/server.py",
        "        except (Gone, Rejected) as error:\n            raise Refused(",
        "        except ZeroDivisionError as error:\n            raise Refused(",
        {"a server that is no MLflow": f"{SERVER}test_a_page_that_is_no_mlflow"},
    ),
    Guard(
        "MLflow's own log keeps silent",
        "raygrid/track/server.py",
        "logging.getLogger(name).setLevel(logging.CRITICAL)",
        "logging.getLogger(name)",
        {
            "a disk of MLflow's that is full": "faults/test_faults_mlflow.py::test_mlflow_on_a_bad_"
            "disk[is full-database "
            "or disk is full]",
        },
    ),
    # --- data sets ---------------------------------------------------------------------------------------------------
    Guard(
        "a shard has the form that its manifest says",
        "raygrid/data/shards.py",
        "    if not good:\n",
        "    if False:\n",
        {"a shard that is damaged": "data/test_arrays.py::test_wrong_shard_files[shape]"},
    ),
    Guard(
        "a shard is compared with its sha256 before it is published",
        "raygrid/data/arrays.py",
        "if not is_whole(Path(place) / name, sha256):",
        "if False:",
        {
            "a shard that is damaged before it is published": "data/test_cache.py::test_a_damaged_shard_is_never_published"
            "[flip]"
        },
    ),
    Guard(
        "whatever Pillow raises is an image that cannot be read",
        "raygrid/data/decode.py",
        "except Exception as error:  # Pillow's readers",
        "except ZeroDivisionError as error:  # Pillow's readers",
        {
            "an image that is damaged, huge, or no image": "data/test_decode.py::test_unreadable[flipped png]",
            "images damaged at random": "data/test_decode.py::test_no_bytes_raise_anything_else",
        },
    ),
    Guard(
        "the size of an image is looked at before it is decoded",
        "raygrid/data/decode.py",
        "if image.width * image.height > MOST_PIXELS:",
        "if False:",
        {"an image that is damaged, huge, or no image": "data/test_decode.py::test_unreadable[smaller bomb]"},
    ),
    Guard(
        "test images are looked for among the training images",
        "raygrid/data/joining.py",
        "for i, d in enumerate(tests) if d in first]",
        "for i, d in enumerate(tests) if False]",
        {"images in both training and test": "data/test_ingest.py::test_images_in_both_parts_are_listed"},
    ),
    Guard(
        "an unreadable image is noted with its reason",
        "raygrid/data/making.py",
        "unreadable.append((position, str(reason)))",
        "pass",
        {
            "unreadable images, left out and listed": "data/test_ingest.py::test_unreadable_images_are_left_out_and_"
            "listed",
        },
    ),
    Guard(
        "a class that lost all its images stops the ingest",
        "raygrid/data/joining.py",
        "if empty := [listing.classes[c] for c in np.flatnonzero(held == 0)]:",
        "if empty := []:",
        {"a class without a readable image": "data/test_ingest.py::test_a_class_of_bad_images"},
    ),
    Guard(
        "a shard that is made is not made again",
        "raygrid/data/making.py",
        "            result[unit.part, unit.index] = done\n",
        "            pass\n",
        {"an ingest that is killed": "data/test_ingest.py::test_killed_and_resumed"},
    ),
    Guard(
        "a note is believed only where its shard is there",
        "raygrid/data/making.py",
        "if done.key == unit.key and there.issuperset(files):",
        "if done.key == unit.key:",
        {"a shard that is gone": "data/test_ingest.py::test_a_note_whose_shard_is_gone_is_not_believed"},
    ),
    Guard(
        "a worker that dies is one line",
        "raygrid/ingest.py",
        "except BrokenProcessPool:",
        "except ZeroDivisionError:",
        {"a worker of an ingest that dies": "data/test_ingest.py::test_a_worker_that_dies"},
    ),
    Guard(
        "a worker on Ray that dies is one line",
        "raygrid/grid.py",
        "except ray.exceptions.RayError as error:",
        "except ZeroDivisionError as error:",
        {
            "a worker of an ingest on Ray that fails, or dies again and again": "data/test_ingest.py::test_what_"
            "fails_on_ray_is_one_line"
        },
    ),
    Guard(
        "a known data set must have the content that is pinned",
        "raygrid/data/known.py",
        "if manifest.facts() != known:",
        "if False:",
        {"a data set that is not what is pinned": "data/test_known.py::test_content_that_is_not_as_pinned"},
    ),
    Guard(
        "a label must be a class",
        "raygrid/data/ground_truth.py",
        "if numbers and label.isdecimal() and int(label) < len(index):",
        "if numbers and label.isdecimal():",
        {"a wrong ground-truth file": "data/test_sources.py::test_wrong_ground_truth[index]"},
    ),
    Guard(
        "both parts must have the same classes",
        "raygrid/data/sources.py",
        "if test_classes != classes:",
        "if False:",
        {"a folder that is no data set": "data/test_sources.py::test_wrong_folders[class only in test]"},
    ),
    Guard(
        "every row of a Parquet file must have a label",
        "raygrid/data/parquet.py",
        "if None in column:",
        "if False:",
        {"a wrong Parquet file": "data/test_sources.py::test_wrong_parquet[null]"},
    ),
    # --- machines ----------------------------------------------------------------------------------------------------
    Guard(
        "a notice of the cloud's drains the node, until Ray has heard",
        "clusters/nodes/spot.py",
        "                if code == 0:\n",
        "                if True:\n",
        {"a spot machine that is taken back": "cluster/test_files.py::test_a_spot_notice_drains_the_node"},
    ),
    # --- security ----------------------------------------------------------------------------------------------------
    Guard(
        "arrays are read without objects",
        "raygrid/data/shards.py",
        'mmap_mode="r", allow_pickle=False',
        'mmap_mode="r", allow_pickle=True',
        {
            f"{SECURITY}a pickle in the place of a shard": "data/test_cache.py::test_nothing_is_unpickled[bare]",
            f"{SECURITY}a source that could execute what it reads": f"{SAFE}test_nothing_that_is_read_is_executed"
            "[raygrid/data/shards.py]",
        },
    ),
    Guard(
        "studies are read with the safe loader",
        "raygrid/study.py",
        "raw = _Loader(text).get_single_data()",
        "raw = yaml.unsafe_load(text)",
        {f"{SECURITY}a study that would run code": f"{SAFE}test_yaml_cannot_make_objects"},
    ),
    Guard(
        "a study's aliases are counted before they are written out",
        "raygrid/study.py",
        "if _values(raw, {}) > MOST_VALUES:",
        "if False:",
        {
            f"{SECURITY}a study that grows without end": f"{SAFE}test_yaml_that_grows_without_end_is_refused_in_time"
            "[known-6]",
        },
    ),
    Guard(
        "names have no sign that could lead elsewhere",
        "raygrid/study.py",
        'Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]',
        "Name = Annotated[str, Field()]",
        {f"{SECURITY}names that become paths": f"{SAFE}test_names_that_become_paths[../x]"},
    ),
    Guard(
        "file names in a manifest have no sign that could lead elsewhere",
        "raygrid/data/manifest.py",
        r'Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,120}\.npy$")',
        "Field()",
        {f"{SECURITY}file names that lead out of a data set": f"{SAFE}test_file_names_in_a_manifest[../../x.npy]"},
    ),
    Guard(
        "names of results are looked at before any is fetched",
        "raygrid/remote.py",
        "sums = {safe_path(str(name)): str(sha256)",
        "sums = {str(name): str(sha256)",
        {
            f"{SECURITY}results that would leave their folder": f"{SAFE}test_results_fetched_from_a_store_stay_in_"
            "their_folder[../escaped]",
        },
    ),
    Guard(
        "no path leads out of a store",
        "raygrid/store.py",
        'if not path or any(part in ("", ".", "..") for part in parts) or "\\\\" in path or "\\0" in path:',
        "if False:",
        {
            f"{SECURITY}paths that would leave a store": f"{STORE}test_store_urls_and_paths_that_could_hurt_are_"
            "refused",
        },
    ),
    Guard(
        "a store's URL holds no credentials",
        "raygrid/store.py",
        'if scheme != "file" and (urlsplit(url).username or urlsplit(url).password):',
        "if False:",
        {
            f"{SECURITY}credentials in a store's URL": f"{STORE}test_store_urls_and_paths_that_could_hurt_are_refused",
        },
    ),
    Guard(
        "credentials reach workers in memory, not on their command lines",
        "raygrid/grid.py",
        "class_cache.ENV_VARS_TO_PROPAGATE - set(_CREDENTIALS)",
        "class_cache.ENV_VARS_TO_PROPAGATE",
        {f"{SECURITY}secrets that a launch would tell": f"{SAFE}test_no_secret_is_told"},
    ),
    Guard(
        "MLflow's address is shown without its password",
        "raygrid/track/server.py",
        r"""hidden = re.sub(r"[^\s/]*:\S*@", "", re.sub(r"//\S*@", "//", uri))""",
        "hidden = uri",
        {f"{SECURITY}the password in MLflow's address": f"{SAFE}test_no_password_of_mlflows_address_is_told[plain]"},
    ),
    Guard(
        "Ray is made to read the token anew",
        "raygrid/grid.py",
        "    _read_again()\n",
        "",
        {
            f"{SECURITY}a token that Ray remembers": f"{SAFE}test_a_process_that_ray_told_another_token_before_can_"
            "start_its_own_ray",
        },
    ),
    Guard(
        "a local Ray asks for a token",
        "raygrid/grid.py",
        'os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}',
        'os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": secrets.token_hex(32)}',
        {f"{SECURITY}strangers in a local Ray": f"{SAFE}test_a_local_ray_asks_for_a_token"},
    ),
    Guard(
        "a local Ray listens on loopback alone",
        "raygrid/grid.py",
        'os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")',
        'os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1")',
        {f"{SECURITY}strangers of the network in a local Ray": f"{SAFE}test_a_local_ray_asks_for_a_token"},
    ),
    Guard(
        "a local Ray's sockets are its user's alone",
        "raygrid/grid.py",
        "mask = os.umask(0o077)",
        "mask = os.umask(0o022)",
        {f"{SECURITY}other users at the sockets of a local Ray": f"{SAFE}test_a_local_ray_asks_for_a_token"},
    ),
    Guard(
        "what lies where everybody may write must be this user's or root's",
        "raygrid/grid.py",
        "found.st_uid in (0, os.getuid()) and",
        "",
        {
            f"{SECURITY}another user's note of a Ray": f"{BAD_NOTE}[give_away]",
            f"{SECURITY}another user's memory of ray up": f"{REMEMBERED}[give_away]",
            f"{SECURITY}another user's folder of Tune's": f"{OTHERS_FOLDER}[give_away]",
        },
    ),
    Guard(
        "what lies where everybody may write is no link",
        "raygrid/grid.py",
        "os.O_NOFOLLOW | ",
        "",
        {
            f"{SECURITY}a link in the place of a note of a Ray": f"{BAD_NOTE}[linked]",
            f"{SECURITY}a link in the place of the memory of ray up": f"{REMEMBERED}[linked]",
            f"{SECURITY}a link in a folder of Tune's": f"{OTHERS_FOLDER}[linked]",
        },
    ),
    Guard(
        "what lies where everybody may write cannot be changed by everybody",
        "raygrid/grid.py",
        " and not found.st_mode & stat.S_IWOTH",
        "",
        {
            f"{SECURITY}a note of a Ray that all may write": f"{BAD_NOTE}[open_to_all]",
            f"{SECURITY}a memory of ray up that all may write": f"{REMEMBERED}[open_to_all]",
            f"{SECURITY}a folder of Tune's that all may write": f"{OTHERS_FOLDER}[open_to_all]",
        },
    ),
    Guard(
        "what lies where everybody may write is a plain file",
        "raygrid/grid.py",
        "stat.S_ISREG(found.st_mode) and ",
        "",
        {
            f"{SECURITY}a pipe in the place of a note of a Ray": f"{BAD_NOTE}[pipe]",
            f"{SECURITY}a pipe in a folder of Tune's": f"{OTHERS_FOLDER}[pipe]",
        },
    ),
    Guard(
        "nobody waits for who may never write",
        "raygrid/grid.py",
        "os.O_NONBLOCK | ",
        "",
        {f"{SECURITY}a pipe in the place of the memory of ray up": f"{REMEMBERED}[pipe]"},
    ),
    Guard(
        "what listens on this machine must be this user's or root's",
        "raygrid/grid.py",
        "if not owners or owners - {0, os.getuid()}:",
        "if False:",
        {f"{SECURITY}another user at the port of a Ray": f"{TRUST}test_what_another_user_listens_on_is_not_joined"},
    ),
    Guard(
        "who listens is found where there is no /proc too",
        "raygrid/grid.py",
        "one.status == psutil.CONN_LISTEN and one.laddr.port == port",
        "False",
        {
            f"{SECURITY}another user at the port of a Ray, elsewhere than on Linux": f"{TRUST}test_listeners_are_found_"
            "without_linux_too",
        },
    ),
    Guard(
        "a Ray without a token is warned of",
        "raygrid/grid.py",
        'if address is not None and os.environ.get("RAY_AUTH_MODE") != "token":',
        "if False:",
        {
            f"{SECURITY}a Ray that lets everybody in": f"{TRUST}test_a_cluster_without_a_token_is_"
            "said[10.0.0.7:6379-False-True]"
        },
    ),
    Guard(
        "a Ray of this machine's own has a token, asked for by name or not",
        "raygrid/grid.py",
        'address = None if asked == "local" else asked or _started_here()',
        "address = asked or _started_here()",
        {
            f"{SECURITY}a local Ray asked for by name": f"{TRUST}test_a_local_ray_that_is_asked_for_by_name_has_a_"
            "token_too"
        },
    ),
    Guard(
        "folders of Tune's that a driver holds are left alone",
        "raygrid/grid.py",
        "fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        {f"{SECURITY}folders of drivers that live": f"{TRUST}test_folders_that_killed_drivers_left_are_removed"},
    ),
    Guard(
        "a cluster grows to its own bound",
        "raygrid/grid.py",
        "sum(sorted(each, reverse=True)[:limit])",
        "sum(sorted(each, reverse=True))",
        {
            f"{SECURITY}more machines than were asked for": f"{TRUST}test_a_cluster_grows_to_its_own_bound_whatever_"
            "its_kinds_of_workers_add_up_to",
        },
    ),
    Guard(
        "a worker that may not delete ends well all the same",
        "raygrid/train.py",
        "with contextlib.suppress(StoreError):  # a worker's role",
        "with contextlib.nullcontext():  # a worker's role",
        {
            f"{SECURITY}a worker that may remove no result": f"{TRUST}test_a_worker_that_may_remove_no_checkpoint_"
            "still_ends_with_the_record_that_stands",
        },
    ),
)

GUARDLESS = {
    "test_each_of_these_would_be_found": "it tests the reader of sources that stands above it",
    "test_no_dependency_has_a_known_hole": "it asks of what others have written",
    "test_the_threat_model_is_written_down": "it reads SECURITY.md",
    "test_a_ray_of_this_user_is_joined": "what is right must be taken: guards may not be too strict",
    "test_a_cluster_of_another_machine_is_joined_by_the_note_alone": "likewise",
}
"""security tests that no guard of the code holds, and why"""


# --- running ---------------------------------------------------------------------------------------------------------


def copied(folder: Path) -> Path:
    """A copy of the working tree, without what git ignores."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def environment(copy: Path) -> dict[str, str]:
    """So that every process imports the copy, and keeps no compiled file of it."""
    kept = {name: value for name, value in os.environ.items() if name != "RAYGRID_WRITE_FAULTS"}
    mine = {
        MARK: str(copy),
        "PYTHONPATH": str(copy),
        "PYTHONDONTWRITEBYTECODE": "1",
        "COLUMNS": "200",
    }
    return {**kept, **mine}


def run(copy: Path, arguments: Sequence[str], seconds: float) -> tuple[int | None, str]:
    """Run pytest in the copy; its exit code, None where it hangs, and what it said. Nothing of it is left."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    with (copy.parent / "said").open("w+") as said:
        process = subprocess.Popen(
            command, cwd=copy, env=environment(copy), stdin=subprocess.DEVNULL, stdout=said, stderr=said,
            start_new_session=True,
        )  # fmt: skip
        code: int | None = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(seconds)
        end(copy)
        process.wait()
        said.seek(0)
        return code, said.read()


def end(copy: Path) -> None:
    """End what was started here and still runs: servers, Ray, workers that hang."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == str(copy):
                process.kill()


def untouched(copy: Path, tests: Iterable[str]) -> dict[str, float]:
    """The tests that pass in the copy, with the seconds that each takes."""
    nodes = sorted(set(tests))
    answer = copy.parent / "answer.xml"
    _, said = run(
        copy, [f"--junitxml={answer}", "-o", "junit_family=xunit1", *(f"tests/{node}" for node in nodes)], 3600
    )
    if not answer.exists():
        print(said[-3000:])
        return {}
    passed = {
        f"{case.get('classname')}::{case.get('name')}": float(case.get("time") or 0)
        for case in ElementTree.parse(answer).iter("testcase")
        if not len(case) or all(part.tag in ("properties", "system-out", "system-err") for part in case)
    }
    found = {}
    for node in nodes:
        file, _, name = f"tests/{node}".partition("::")
        key = f"{file.removesuffix('.py').replace('/', '.')}::{name}"
        if key in passed:
            found[node] = passed[key]
    if len(found) < len(nodes):
        print(said.partition("= FAILURES =")[2][:6000])
    return found


def without(copy: Path, guard: Guard, test: str, usual: float) -> tuple[str, str]:
    """What a test does without its guard, and what it says."""
    file = copy / guard.file
    whole = file.read_text()
    assert whole.count(guard.text) == 1, (
        f"{guard.what}: its text stands {whole.count(guard.text)} times in {guard.file}"
    )
    file.write_text(whole.replace(guard.text, guard.instead))
    try:
        code, said = run(copy, ["-x", f"tests/{test}"], PATIENCE_S + 2 * usual)
    finally:
        file.write_text(whole)
    reasons = re.findall(r"^(?:FAILED|ERROR) .*? - (.*)$", said, re.M)
    if code is None:
        return "hangs", ""
    if code == 1:
        return "fails", reasons[0] if reasons else ""
    return ("STILL PASSES", "") if code == 0 else (f"CANNOT BE RUN ({code})", said[-600:])


# --- the table -------------------------------------------------------------------------------------------------------


def lines(text: str) -> dict[str, str]:
    """The rows of a README by guard."""
    found = MARKED.search(text)
    assert found, "README.md has lost the markers of its guards"
    rows = [line for line in found[0].split("\n") if line.startswith("| ") and line not in HEAD]
    return {line.split(" | ")[0].removeprefix("| "): line for line in rows}


def row(guard: Guard, outcome: str) -> str:
    """A line of the table."""
    return f"| {guard.what} | `{guard.file}` | {'; '.join(guard.holds)} | {outcome} |"


def update(seen: Mapping[str, str], readme: Path = README) -> None:
    """Write the rows of guards that were run; rows of guards that are no more go."""
    text = readme.read_text()
    kept = lines(text)
    made = {guard.what: row(guard, seen[guard.what]) for guard in GUARDS if guard.what in seen}
    table = "\n".join([*HEAD, *((kept | made)[g.what] for g in GUARDS if g.what in kept or g.what in made)])
    readme.write_text(MARKED.sub(lambda found: found[1] + table + found[2], text))


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="WORD", help="guards with this word in their guard, file, faults or tests")
    parser.add_argument("--write", action="store_true", help="bring the table of README.md up to date")
    arguments = parser.parse_args()
    word = (arguments.only or "").lower()
    chosen = [g for g in GUARDS if any(word in text.lower() for text in (g.what, g.file, *g.holds, *g.holds.values()))]
    seen: dict[str, str] = {}
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="raygrid-guards-") as folder:
        copy = copied(Path(folder) / "tree")
        usual = untouched(copy, (test for guard in chosen for test in guard.holds.values()))
        if not usual:
            return 1
        print(
            f"{len(usual)} tests pass in {sum(usual.values()):.0f} s with {len(chosen)} guards in their place",
            flush=True,
        )
        for guard in chosen:
            outcomes: dict[str, str] = {}
            for fault, test in guard.holds.items():
                begun = time.monotonic()
                said = ""
                if test not in usual:
                    outcomes[test] = "FAILS ANYHOW"
                elif test not in outcomes:
                    outcomes[test], said = without(copy, guard, test, usual[test])
                wrong += outcomes[test] not in ("fails", "hangs")
                took = time.monotonic() - begun
                print(f"{outcomes[test]:<12} {took:4.0f} s  {guard.what}: {fault}  {said[:150]}", flush=True)
            if set(outcomes.values()) <= {"fails", "hangs"}:
                seen[guard.what] = f"{' or '.join(sorted(set(outcomes.values())))}, {datetime.date.today()}"
    if arguments.write:
        update(seen)
    print(f"{len(seen)} of {len(chosen)} guards: what they hold fails without them")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
