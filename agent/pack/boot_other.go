//go:build !linux

package pack

import "time"

// sinceBoot is not known here.
func sinceBoot() time.Duration { return 0 }
