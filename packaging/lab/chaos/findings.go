package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/quicklime-ir/quicklime/packaging/lab/world"
)

// finder is GuardDuty, and an EventBridge that delivers more than once and in
// no order.
type finder struct {
	random  *rand.Rand
	deliver func(event string) error
	hosts   []string    // that nothing was found on yet
	room    func() bool // whether there may be one more case at a time

	found []found
	sent  []Sent
}

// found is a finding, and the newest event that told of it.
type found struct {
	finding world.Finding
	event   string // as it was delivered
}

// run sends findings until ctx ends or something was found on every host, which
// takes so long about where there is always room.
func (f *finder) run(ctx context.Context, length time.Duration) error {
	every := length / time.Duration(2*len(f.hosts))
	for len(f.hosts) > 0 && ctx.Err() == nil {
		if err := f.next(); err != nil {
			return err
		}
		sleep(ctx, every/2+time.Duration(f.random.Int64N(int64(every))))
	}
	return nil
}

// next sends one event: half of the time of something new, where there is
// room.
func (f *finder) next() error {
	if len(f.found) == 0 {
		return f.fresh()
	}
	switch n := f.random.IntN(12); {
	case n < 5 && f.room():
		return f.fresh()
	case n == 5 && f.room():
		return f.sequence()
	case n < 8: // the very same event
		return f.deliver(f.found[f.random.IntN(len(f.found))].event)
	case n < 11:
		return f.update(&f.found[f.random.IntN(len(f.found))])
	default: // something else on a host that has a case
		other := f.found[f.random.IntN(len(f.found))].finding
		other.ID, other.Type, other.Count = fmt.Sprintf("%032x", f.random.Uint64()), "CryptoCurrency:EC2/BitcoinTool.B!DNS", 1
		return f.send(other)
	}
}

// host gives the next host that nothing was found on.
func (f *finder) host() string {
	h := f.hosts[0]
	f.hosts = f.hosts[1:]
	return h
}

func (f *finder) fresh() error {
	one := world.Compromised(f.host())
	one.ID = fmt.Sprintf("%032x", f.random.Uint64())
	return f.send(one)
}

// sequence names a new host and one that has a case already, or two new ones.
func (f *finder) sequence() error {
	hosts := []string{f.host()}
	if len(f.hosts) > 0 && f.random.IntN(2) == 0 {
		hosts = append(hosts, f.host())
	} else if old := instances(f.found[f.random.IntN(len(f.found))].finding); old[0] != hosts[0] {
		hosts = append(hosts, old[0])
	}
	return f.send(world.Finding{ID: fmt.Sprintf("%032x", f.random.Uint64()), Type: "AttackSequence:EC2/CompromisedInstanceGroup", Severity: 9,
		Title: "Several instances show one attack.", ResourceType: "AttackSequence", Sequence: hosts, Count: 1})
}

// update tells of a finding again, at a higher count; now and then the older
// event comes once more after it.
func (f *finder) update(one *found) error {
	before := one.event
	one.finding.Count++
	if err := f.tell(one); err != nil || f.random.IntN(3) > 0 {
		return err
	}
	return f.deliver(before)
}

func (f *finder) send(finding world.Finding) error {
	f.found = append(f.found, found{finding: finding})
	return f.tell(&f.found[len(f.found)-1])
}

// tell delivers a finding as it stands now, as an event of its own.
func (f *finder) tell(one *found) error {
	a, b := f.random.Uint64(), f.random.Uint64()
	id := fmt.Sprintf("%08x-%04x-4%03x-8%03x-%012x", a>>32, a>>16&0xffff, a&0xfff, b>>52, b&0xffffffffffff)
	one.event = one.finding.Event(id)
	f.sent = append(f.sent, Sent{Event: id, Instances: instances(one.finding), At: time.Now()})
	return f.deliver(one.event)
}

func instances(f world.Finding) []string {
	if f.Instance != "" {
		return []string{f.Instance}
	}
	return f.Sequence
}
