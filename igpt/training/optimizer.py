"""AdamW without torch's compiler, for ranks that compile nothing."""

import inspect

import torch


class AdamW(torch.optim.AdamW):
    """torch's own, beneath the wrappers that keep its compiler out of these methods.

    To keep it out they import it: more than a second of CPU, and a thousand files that may lie on a
    network file system, at the start of every rank. What the methods compute is the same.
    """

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    state_dict = inspect.unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.AdamW.load_state_dict)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))
