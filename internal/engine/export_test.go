package engine

import "time"

// Tick is what the loop does once a second.
func (e *Engine) Tick(now time.Time) { e.tick(now) }
