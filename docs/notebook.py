"""raygrid as a library: a small study from question to figure, cell by cell (`# %%`), in half a minute on one core.

python docs/notebook.py [FOLDER]        or cell by cell in an editor that knows `# %%`
"""

# %% What is asked: two random splits of handwritten digits, which come with scikit-learn: nothing to download
import sys
from pathlib import Path

import raygrid

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("results")
work = raygrid.load(
    "icons",
    "name=notebook",
    "dataset=digits",
    "network.width=0.25",
    "images_per_class=50",
    "splits=[{kind: random, seed: 0}, {kind: random, seed: 1}]",
    "treatments=[base, scratch, selffer, transfer]",
    "layers=[1, 4, 7]",
    "recipe={epochs: 12, batch_size: 16, lr: 0.03, evaluations: 3, augmentation: {padding: 1, flip: false}}",
    "execution.backend=in-process",
    out=folder,
)
print(work.study.name, "on", work.study.dataset.name)

# %% What it takes: networks by treatment, and predicted seconds on one core
print(work.plan.counts, f"{work.plan.summary(devices=1).seconds:.0f} s")

# %% Train what is missing; a second time there is nothing to do
exit_code = work.run()

# %% One row a network: mean accuracy by treatment and n
results = work.results()
table = results.groupby(["treatment", "n"]).top1_last.mean().unstack()
print(table.round(3))

# %% The same networks minus `scratch` on the same task and seed: what copying costs, in points
scratch = results[results.treatment == "scratch"].set_index(["split_seed", "target", "seed"]).top1_last
frozen = results[results.treatment.isin(["selffer", "transfer"])]
reference = scratch.reindex([tuple(row) for row in frozen[["split_seed", "target", "seed"]].to_numpy()]).to_numpy()
print((100 * (frozen.top1_last - reference)).groupby([frozen.treatment, frozen.n]).mean().round(1).unstack())

# %% Learning curves, and the report with its figures
print(work.history().groupby(["cell"]).top1.last().describe())
print(work.folder / "report" / "report.html")
