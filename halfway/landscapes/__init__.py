"""Loss landscapes as pure functions of `loss_fn(params)`: one file per question."""
