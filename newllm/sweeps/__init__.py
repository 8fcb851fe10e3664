"""Many runs: jobs side by side, skipped, resumed or refused; Hydra's launcher and sweepers."""
