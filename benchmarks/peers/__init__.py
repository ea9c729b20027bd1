"""What one would write instead of raygrid: short, idiomatic, and as fast as such scripts get.

`plain.py` trains one cell with PyTorch alone; `tune.py` runs such trainings as Ray Tune trials. They use the same uint8
arrays, augmentation, memory format, precision, threads and tests as raygrid, and reach the same accuracies.
"""
