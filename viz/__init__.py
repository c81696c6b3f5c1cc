"""Pictures of a trace: no model, no UI framework."""
