package emulator

import (
	"fmt"
	"slices"
	"time"
)

// maxActs bounds the acts that are kept. A lab makes about twenty for each
// case; past the bound EC2 refuses every call, as what is not counted could be done
// twice unseen.
const maxActs = 200_000

// Act is what a call of EC2 did to one thing, or found done. Refused calls are
// none, but for those that EC2 refuses because the thing is there already.
type Act struct {
	Time    time.Time
	Action  string // as in CreateImage
	Subject string // the instance, interface, VPC, group or tagged resource
	What    string // which thing of it: "image", "group NAME", "groups", "tag KEY", "rule RULE", an attribute
	Value   string // what it became: the image's name, the group's id, the groups, the tag, the action, the attribute
	Changed bool   // false: it was so already
}

// Acts gives every act so far, in their order.
func (e *Emulator) Acts() []Act {
	e.account.mu.Lock()
	defer e.account.mu.Unlock()
	return slices.Clone(e.account.acts)
}

// act notes what a call did; the caller holds the lock.
func (a *account) act(action, subject, what string, value any, changed bool) {
	a.acts = append(a.acts, Act{a.now(), action, subject, what, fmt.Sprint(value), changed})
}

// full says that no more acts can be noted.
func (a *account) full() *Error {
	if len(a.acts) < maxActs {
		return nil
	}
	return refuse("InternalError", "the emulator keeps no more than %d acts", maxActs)
}
