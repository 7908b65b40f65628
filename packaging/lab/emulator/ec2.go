package emulator

import (
	"cmp"
	"maps"
	"net/http"
	"slices"
)

const (
	ec2Version = "2016-11-15"
	ec2Space   = "http://ec2.amazonaws.com/doc/2016-11-15/"
)

// handler reads the parameters of an action and gives what then is to be done.
// The work is done under the account's lock, and only where every parameter
// was read and right.
type handler func(p *params) func(a *account) (any, *Error)

var ec2Actions = map[string]handler{
	"DescribeInstances":               describeInstances,
	"DescribeInstanceAttribute":       describeInstanceAttribute,
	"ModifyInstanceAttribute":         modifyInstanceAttribute,
	"DescribeNetworkInterfaces":       describeNetworkInterfaces,
	"ModifyNetworkInterfaceAttribute": modifyNetworkInterfaceAttribute,
	"DescribeSecurityGroups":          describeSecurityGroups,
	"CreateSecurityGroup":             createSecurityGroup,
	"AuthorizeSecurityGroupIngress":   changeRules("AuthorizeSecurityGroupIngress", (*group).ingress, authorize),
	"AuthorizeSecurityGroupEgress":    changeRules("AuthorizeSecurityGroupEgress", (*group).egress, authorize),
	"RevokeSecurityGroupIngress":      changeRules("RevokeSecurityGroupIngress", (*group).ingress, revoke),
	"RevokeSecurityGroupEgress":       changeRules("RevokeSecurityGroupEgress", (*group).egress, revoke),
	"CreateImage":                     createImage,
	"DescribeImages":                  describeImages,
	"DescribeSnapshots":               describeSnapshots,
	"CreateTags":                      createTags,
}

type ec2Service struct{ *Emulator }

func (ec2Service) action(_ *http.Request, body []byte) string { return queryAction(body) }

func (s ec2Service) do(_ *http.Request, action string, body []byte) (any, *Error) {
	p, err := parseParams(string(body))
	if err != nil {
		return nil, err
	}
	p.text("Action")
	if version := p.text("Version"); version != ec2Version {
		return nil, refuse("InvalidAction", "the version %.20q is not %s", version, ec2Version)
	}
	handle, ok := ec2Actions[action]
	if !ok {
		return nil, refuse("InvalidAction", "the action %.100q is not valid for this web service", action)
	}
	dry, _ := p.flag("DryRun")
	work := handle(p)
	if err := p.finish(); err != nil {
		return nil, err
	}
	if dry {
		return nil, refuseWith(http.StatusPreconditionFailed, "DryRunOperation", "request would have succeeded, but DryRun flag is set")
	}
	s.account.mu.Lock()
	defer s.account.mu.Unlock()
	if err := s.account.full(); err != nil {
		return nil, err
	}
	return work(s.account)
}

func (ec2Service) throttled() *Error {
	return refuseWith(http.StatusServiceUnavailable, "RequestLimitExceeded", "request limit exceeded")
}

func (ec2Service) unavailable() *Error {
	return refuseWith(http.StatusServiceUnavailable, "Unavailable", "the service is unavailable; please try again shortly")
}

func (ec2Service) write(w http.ResponseWriter, action string, answer any, err *Error) {
	if err == nil {
		writeXML(w, http.StatusOK, action+"Response", ec2Space, answer)
		return
	}
	code := err.Code
	if code == "InvalidClientTokenId" || code == "SignatureDoesNotMatch" {
		code = "AuthFailure" // EC2's own word for both
	}
	type problem struct{ Code, Message string }
	writeXML(w, err.httpStatus(), "Response", "", struct {
		Errors    []problem `xml:"Errors>Error"`
		RequestID string
	}{[]problem{{code, err.Message}}, newUUID()})
}

// meta begins every answer.
type meta struct {
	RequestID string `xml:"requestId"`
}

func stamp() meta { return meta{newUUID()} }

// done is the answer of an action that only says that it was done.
type done struct {
	meta
	Return bool `xml:"return"`
}

func wasDone() *done { return &done{stamp(), true} }

// Parts of several answers.
type (
	tagItem struct {
		Key   string `xml:"key"`
		Value string `xml:"value"`
	}
	groupItem struct {
		ID   string `xml:"groupId"`
		Name string `xml:"groupName"`
	}
	attribute struct {
		Value string `xml:"value"`
	}
)

func (a *account) tagItems(id string) []tagItem {
	var out []tagItem
	for _, key := range slices.Sorted(maps.Keys(a.tags[id])) {
		out = append(out, tagItem{key, a.tags[id][key]})
	}
	return out
}

func (a *account) groupItems(ids []string) []groupItem {
	var out []groupItem
	for _, id := range ids {
		out = append(out, groupItem{id, a.group(id).name})
	}
	return out
}

// createTags puts tags on resources, on all of them or on none.
func createTags(p *params) func(a *account) (any, *Error) {
	ids, tags := p.list("ResourceId"), p.tags("Tag")
	if len(ids) == 0 {
		p.fail("MissingParameter", "the request must contain the parameter resourceIdSet")
	}
	if len(tags) == 0 {
		p.fail("MissingParameter", "the request must contain the parameter tagSet")
	}
	return func(a *account) (any, *Error) {
		for _, id := range ids {
			if err := a.taggable(id, tags); err != nil {
				return nil, err
			}
		}
		for _, id := range ids {
			for _, key := range slices.Sorted(maps.Keys(tags)) {
				before, there := a.tags[id][key]
				a.act("CreateTags", id, "tag "+key, tags[key], !there || before != tags[key])
			}
			_ = a.tag(id, tags) // taggable has counted them
		}
		return wasDone(), nil
	}
}

func (a *account) taggable(id string, tags map[string]string) *Error {
	kinds := []struct {
		resource
		there bool
	}{
		{anInstance, a.instance(id) != nil}, {anInterface, a.face(id) != nil}, {aGroup, a.group(id) != nil},
		{anImage, a.image(id) != nil}, {aSnapshot, a.snapshot(id) != nil}, {aVolume, a.volumes[id] != ""},
	}
	for _, kind := range kinds {
		if !kind.wellFormed(id) {
			continue
		}
		if !kind.there || !a.seen(id) {
			return kind.missing(id)
		}
		both := maps.Clone(tags)
		maps.Copy(both, a.tags[id])
		if len(both) > maxTags {
			return refuse("TagLimitExceeded", "resource %s would have %d tags, more than %d", id, len(both), maxTags)
		}
		return nil
	}
	return refuse("InvalidID", "the id '%.100s' is not valid", cmp.Or(id, "(empty)"))
}
