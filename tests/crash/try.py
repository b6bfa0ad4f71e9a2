import sys, time, json, tempfile
from pathlib import Path
from tests.crash.harness import Trial
from tests.crash.cases import CASES
if __name__ == "__main__":
    names = sys.argv[2:] or list(CASES)
    for name in names:
        with tempfile.TemporaryDirectory() as f:
            t = time.time()
            trial = Trial(name, Path(f))
            try:
                trial.prepare()
                w = trial.wrong_alone()
            except BaseException as e:
                print("##", name, "PREPARE", repr(e)[-1500:], flush=True); continue
            print("##", name, len(trial.points), f"{trial.seconds:.2f}s", w, f"{time.time()-t:.1f}", flush=True)
            if sys.argv[1] == "all":
                tally = trial.kills(range(1, len(trial.points) + 2))
                print("##", name, "points", tally.points, "states", tally.states, "faults", len(tally.faults), f"{time.time()-t:.1f}s", flush=True)
                for line in tally.faults: print("   ", line.replace("\n", " | ")[:400], flush=True)
