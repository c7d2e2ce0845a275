"""Figures of the original series that stand beside ours: errors of named colours in its best seed of
60 (Sparse Concept Anchoring, arXiv 2512.12469, and its experiments)."""

COLOURS = ("red", "orange", "yellow", "cyan", "magenta", "pink")

NAMED: dict[str, dict[str, dict[str, float]]] = {
    experiment: {cut: dict(zip(COLOURS, values, strict=True)) for cut, values in cuts.items()}
    for experiment, cuts in {
        "2.4.1": {
            "suppression": (0.284, 0.154, 0.046, 0.001, 0.049, 0.158),
            "repulsion": (0.333, 0.135, 0.030, 0.001, 0.033, 0.144),
            "ablation": (0.333, 0.138, 0.031, 0.342, 0.035, 0.148),
        },
        "2.5.1": {
            "suppression": (0.234, 0.120, 0.040, 0.0, 0.041, 0.121),
            "ablation": (0.334, 0.137, 0.029, 0.248, 0.031, 0.132),
        },
        "2.9.1": {
            "ablation": (0.343, 0.143, 0.024, 0.0, 0.009, 0.124),
            "suppression": (0.213, 0.128, 0.036, 0.0, 0.011, 0.103),
        },
        "2.10.1": {
            "ablation": (0.385, 0.113, 0.017, 0.001, 0.015, 0.117),
            "suppression": (0.169, 0.083, 0.021, 0.0, 0.028, 0.104),
        },
    }.items()
}
"""By experiment, cut and colour."""
