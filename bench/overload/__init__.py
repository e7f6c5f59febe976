"""Overload in virtual time: the four policies against a sink that is slow, failing or
gone, beside published algorithms.

    workload    what is offered, and what befalls the sink: the scenarios
    sink        the sink: capacity, knee, jitter, errors, hangs
    kernel      virtual time: producers, lanes, workers, and the books that must balance
    controllers ours, wired as BufferManager wires them; ablations; the oracle
    baselines   others' algorithms, written from their publications, behind the same
                interface
    fleet       a hundred breakers before one sink
    in_flight   how many calls are in flight: that law beside every fixed number, with
                a model of a sink of its own; in_flight_report: its Markdown
    metrics     figures of a run, and the criteria
    report      Markdown, and plots where matplotlib is at hand
    run         the command: python -m bench.overload

Everything is seeded: the same seed gives the same figures on any machine.
"""
