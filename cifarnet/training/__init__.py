"""Objectives, schedules, optimizers, averaged weights; imports core and networks."""
