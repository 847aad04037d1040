"""A plan through the family's pipeline, on this machine.

driver      claims the run, starts the host, shows its steps, ends everything on a signal, tells how it went
host        the process that runs the compiled pipeline with kfp.local; the only place in `src` that loads kfp
pipelines   where compiled pipelines lie
"""
