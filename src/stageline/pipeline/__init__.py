"""A plan through the family's Kubeflow pipeline: its steps, on this machine and on a cluster. Loads no torch.

What the components call
    steps       the bodies, one per component: JSON-able in, references out
    request     the pipeline's parameters as one config, the same in every step
    body        what every step has around it: cancellation, progress lines, the failure record
    item_job    an item as a process here or a PyTorchJob on the cluster, followed and cancelled
    receipts    answers given before, taken again while what they point to is unchanged
    artifacts   what a step shows of its answer in KFP
    journal     what a step in a pod writes down in the run, where no driver does

On this machine
    driver      claims the run, starts the host, shows its steps, ends everything on a signal, tells how it went
    host        the process that runs the compiled pipeline with kfp.local
    compiled    where compiled pipelines lie

On a backend
    submission  a run submitted, followed and told of
    backend     a Kubeflow Pipelines API server
"""
