package steps

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/cloud"
	"github.com/quicklime-ir/quicklime/collector/playbook"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// contain puts every interface of the instance into its VPC's isolation
// group, which has no rule. The groups before are in the case, and on each
// interface as a tag, before any is changed.
func (s *Story) contain(ctx context.Context, run *playbook.Run) error {
	c, ec2, err := s.open(ctx, run)
	if err != nil {
		return err
	}
	interfaces, err := ec2.Groups(ctx, c.Instance.ID)
	if err != nil {
		return retry(Contain, err)
	}
	if len(interfaces) == 0 {
		return fmt.Errorf("cannot contain %s: it has no network interface", c.Instance.ID)
	}
	groups := map[string]string{} // VPC -> its isolation group
	for _, i := range interfaces {
		if groups[i.VPC] != "" {
			continue
		}
		if groups[i.VPC], err = ec2.IsolationGroup(ctx, i.VPC); err != nil {
			return retry(Contain, err)
		}
	}
	before := withBefore(c.Interfaces, interfaces)
	if err := learn(ctx, run, casefile.Event{Interfaces: before}); err != nil {
		return err
	}
	// One interface that cannot be changed must not keep the others open.
	var errs []error
	for _, i := range interfaces {
		errs = append(errs, isolate(ctx, ec2, c, i, groups[i.VPC], before))
	}
	return retry(Contain, errors.Join(errs...))
}

// isolate changes one interface. The tag is for people; that it cannot be
// written does not keep the interface open.
func isolate(ctx context.Context, ec2 *cloud.EC2, c casefile.Case, i cloud.Interface, group string, before []evidence.Interface) error {
	at := slices.IndexFunc(before, func(b evidence.Interface) bool { return b.ID == i.ID })
	tagged := ec2.Tag(ctx, []string{i.ID}, map[string]string{
		cloud.TagCase: c.ID, cloud.TagPreviousGroups: cloud.PreviousGroups(before[at].Before)})
	return errors.Join(ec2.Isolate(ctx, i.ID, group), tagged)
}

// withBefore adds interfaces that the case does not know yet. Of one that it
// knows, the groups of now may be those after.
func withBefore(known []evidence.Interface, now []cloud.Interface) []evidence.Interface {
	out := slices.Clone(known)
	for _, i := range now {
		if slices.ContainsFunc(out, func(k evidence.Interface) bool { return k.ID == i.ID }) {
			continue
		}
		out = append(out, evidence.Interface{ID: i.ID, Before: i.Groups})
	}
	return out
}

// isolated says which interfaces are not in their isolation group alone.
func isolated(ctx context.Context, ec2 *cloud.EC2, interfaces []cloud.Interface) error {
	var errs []error
	for _, i := range interfaces {
		group, err := ec2.IsolationGroup(ctx, i.VPC)
		if err != nil {
			return retry(Verify, err)
		}
		if !slices.Equal(i.Groups, []string{group}) {
			errs = append(errs, fmt.Errorf("interface %s is in groups %v, want %s alone: NOT CONTAINED", i.ID, i.Groups, group))
		}
	}
	return errors.Join(errs...)
}
