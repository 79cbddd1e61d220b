"""The cost model: what kernel calls do, counted, and what that costs on a target."""
