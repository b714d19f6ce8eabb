"""The command line: it parses, calls one public function, and prints.

Its files:

    main                           the verbs, `run` among them
    run_verbs, checkpoint_verbs    `list`, `show`, `report`; `forecast`, `compare`
    running                        from a request to a kept result
    caching                        what was compiled is kept beside the runs
    options                        what several verbs share
    terminal                       how it speaks: answers (`--json` too) on standard output, everything else on standard error
"""
