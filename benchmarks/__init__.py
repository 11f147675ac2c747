"""ted measured side by side with the programs people use today; one module per table.

    make bench                                 # every table
    python -m benchmarks build relay           # some
    python -m benchmarks --rounds 1 --quick depth --dry   # a look, written nowhere

A table is a module here with a function ``table(options: Options) -> Report``. What it shares with the others is in
``measure`` (runs, CPU, memory, rounds) and ``report`` (the Markdown and its place in docs/benchmarks.md).

Rules:
 * Whatever is compared runs in the same run, interleaved, on the same input; ratios before absolute figures.
 * Median and worst are shown, never the best alone.
 * A result that is not checked byte for byte is not a result.
"""
