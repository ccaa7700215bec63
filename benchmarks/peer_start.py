from benchmarks.contest import Contest
def start_contest():
    return Contest("g","x","y",1.0,{"hybrid_jax": lambda quick: (lambda: None)})
