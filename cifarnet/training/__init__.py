"""Objectives, schedules, optimizers, averaged weights."""
