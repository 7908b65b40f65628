// Package steps is the story of a case, one file for each chapter, in the
// order in which they are told:
//
//	notify     say that it begins, or, of a case that acts on nothing: announce
//	protect    keep the instance from being terminated
//	volatile   processes and sockets, before they are gone
//	symbols    what an analyst needs to read the image
//	memory     the LiME image
//	live       logs, histories, persistence
//	image      the AMI of its disks
//	contain    every interface into the isolation group
//	verify     read back what was done
//	seal       sign the manifest
//	report     say what was got, and what was not
//
// Each step is harmless to repeat, looks before it creates, and has a limit.
// Evidence comes before containment, but nothing that fails or hangs before
// it keeps the instance from being contained.
package steps

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/cloud"
	"github.com/quicklime-ir/quicklime/collector/custody"
	"github.com/quicklime-ir/quicklime/collector/fleet"
	"github.com/quicklime-ir/quicklime/collector/ledger"
	"github.com/quicklime-ir/quicklime/collector/locker"
	"github.com/quicklime-ir/quicklime/collector/notify"
	"github.com/quicklime-ir/quicklime/collector/playbook"
	"github.com/quicklime-ir/quicklime/proto/evidence"
	wire "github.com/quicklime-ir/quicklime/proto/wire/v1"
)

// The names of the steps.
const (
	Announce = "announce"
	Notify   = "notify"
	Protect  = "protect"
	Volatile = "volatile"
	Symbols  = "symbols"
	Memory   = "memory"
	Live     = "live"
	Image    = "image"
	Contain  = "contain"
	Verify   = "verify"
	Seal     = "seal"
	Report   = "report"
)

// Limits bound how long the steps may take.
type Limits struct {
	Agent    time.Duration // for an agent to attach, from the case's opening
	Stall    time.Duration // a capture without progress is given up after it
	Volatile time.Duration
	Symbols  time.Duration
	Memory   time.Duration
	Live     time.Duration
	Image    time.Duration // for the AMI to become available
}

// Story holds what the steps act with.
type Story struct {
	Account  string                         // in which the collector may act
	EC2      func(region string) *cloud.EC2 // the region's API
	Fleet    *fleet.Fleet
	Ledger   *ledger.Ledger
	Locker   *locker.Locker
	Signer   custody.Signer
	Notifier notify.Notifier
	Self     evidence.Software
	Limits   Limits

	MemorySource wire.MemorySource
	Compression  wire.Compression
	MemoryLimits *wire.Limits // of a memory image, to begin with
	Definitions  []*wire.DefinitionFile
}

// Steps gives the chapters of a case that acts.
func (s *Story) Steps() []playbook.Step {
	const api = 10 * time.Minute // for calls that throttle, or miss what was just made
	// Each second counts until a host is protected, captured and contained.
	// CreateImage, and what is asked of an AMI, have small buckets in EC2.
	soon := playbook.Retry{First: 500 * time.Millisecond, Most: 5 * time.Second}
	return []playbook.Step{
		{Name: Notify, Limit: notifyLimit, Do: s.notify},
		{Name: Protect, Limit: time.Minute, Retry: soon, Do: s.protect},
		{Name: Volatile, Limit: s.Limits.Volatile, Retry: soon, Do: s.capture(evidence.Volatile)},
		{Name: Symbols, Limit: s.Limits.Symbols, Retry: soon, Do: s.capture(evidence.Symbols)},
		{Name: Memory, Limit: s.Limits.Memory, Retry: soon, Do: s.capture(evidence.Memory)},
		{Name: Live, Limit: s.Limits.Live, Retry: soon, Do: s.capture(evidence.Live)},
		{Name: Image, Limit: api, Do: s.image},
		{Name: Contain, Limit: api, Retry: soon, Do: s.contain},
		{Name: Verify, Limit: s.Limits.Image + api, Do: s.verify},
		{Name: Seal, Limit: api, Do: s.seal},
		{Name: Report, Limit: notifyLimit, Do: s.report},
	}
}

// notifyLimit is how long a case waits for a message to be taken: in a burst of
// findings the webhook takes a few a minute. What is not taken in time is told
// later, while the case goes on.
const notifyLimit = 15 * time.Second

// Record gives the one chapter of a case that acts on nothing. Nobody waits for
// it, and nothing else tells of the case, so it has a day.
func (s *Story) Record() []playbook.Step {
	patient := playbook.Retry{First: time.Second, Most: 5 * time.Minute}
	return []playbook.Step{{Name: Announce, Limit: 24 * time.Hour, Retry: patient, Do: s.announce}}
}

// Names gives the names of steps.
func Names(steps []playbook.Step) []string {
	var out []string
	for _, s := range steps {
		out = append(out, s.Name)
	}
	return out
}

// open gives the case as it stands, and the API for its instance.
func (s *Story) open(ctx context.Context, run *playbook.Run) (casefile.Case, *cloud.EC2, error) {
	c, err := run.Case(ctx)
	if err != nil {
		return c, nil, playbook.Again{Err: err}
	}
	api, err := s.ec2(c)
	return c, api, err
}

// ec2 gives the API for a case's instance, if the collector may act there.
func (s *Story) ec2(c casefile.Case) (*cloud.EC2, error) {
	if c.Instance.Account != s.Account {
		return nil, fmt.Errorf("cannot act on %s in account %s: this collector's credentials are of account %s", c.Instance.ID, c.Instance.Account, s.Account)
	}
	return s.EC2(c.Instance.Region), nil
}

// final are, for each step that asks EC2, the codes that end it, beside those
// that end any call (cloud.Final): what it would wait for in vain. All else is
// asked again until the step's limit.
var final = map[string][]string{
	Protect: {"InvalidInstanceID.NotFound"},
	// Room for snapshots is made by people, who must be told.
	Image: {"InvalidInstanceID.NotFound", "SnapshotLimitExceeded", "TagLimitExceeded"},
	// An interface that is gone is not among them: the next try looks which
	// ones the instance has now.
	Contain: {"InvalidInstanceID.NotFound", "InvalidVpcID.NotFound", "SecurityGroupLimitExceeded",
		"SecurityGroupsPerInterfaceLimitExceeded", "TagLimitExceeded"},
	Verify: {"InvalidInstanceID.NotFound", "InvalidVpcID.NotFound", "SecurityGroupLimitExceeded"},
}

// retry sorts an error of a step's call of EC2: final, or to be tried again.
func retry(step string, err error) error {
	if err == nil || cloud.Final(err, final[step]...) {
		return err
	}
	return playbook.Again{Err: err}
}

// stopping reports whether the collector is shutting down: then a step
// leaves everything as it is, to be taken up again.
func stopping(ctx context.Context) bool { return errors.Is(ctx.Err(), context.Canceled) }
