//go:build !linux

package pack

import "time"

// SinceBoot is not known here.
func SinceBoot() time.Duration { return 0 }
