"""One item in, one result out: prepare, train, evaluate, predict, report."""
