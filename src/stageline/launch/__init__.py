"""Starting a stage: a job is a value, rendering it is pure, and what was started ends with its starter. No torch.

On this machine
    job         what to start, its name, and how its end is judged
    process     what the kernel offers against orphans
    local       start, follow and cancel a job here
    lines       how a step talks to whoever follows it

On a cluster, pure
    pytorchjob  a job as a PyTorchJob; `pod` its volumes, `manifest` its YAML and how it differs from one that runs
    placement   whether a config can become jobs; `defaults` what its namespace says
    adoption    what to do about a job that is there already
    scene       a followed job as it was told so far; `words` its state, `budget` its limits, `outage` silent nodes
    diagnosis   why it does not run or how it ended; `signatures` the texts that tell; `refusals` the server's
    timeline    which log lines are new
    listing     jobs as rows

On a cluster, with requests
    api         the one door to the API server; `answer` its responses, `watching` its changes
    control     start or adopt, follow, cancel; `lifeline` the Lease that says who follows
    follow      one loop over watches and logs to one verdict
    logs        every served line of every pod once
    looking     list, logs, cancel and comparison by hand; `outcome` and `trial` ask for a job's own end
"""
