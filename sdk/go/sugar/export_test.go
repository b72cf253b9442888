// SPDX-License-Identifier: Apache-2.0

package sugar

import (
	"testing"
	"time"
)

// TriesMax is how often a log that brings nothing new is asked for again.
const TriesMax = triesMax

// Hurry makes waiting short for the length of a test.
func Hurry(t *testing.T, heldFor time.Duration) {
	beforePause, beforeHeld := pauseFirst, held
	t.Cleanup(func() { pauseFirst, held = beforePause, beforeHeld })
	pauseFirst, held = 100*time.Microsecond, heldFor
}
