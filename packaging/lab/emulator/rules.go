package emulator

import (
	"cmp"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// changeRules is the handler of the four actions on a group's rules.
func changeRules(action string, of func(*group) *[]permission, change func(have, rules []permission) ([]permission, *Error)) handler {
	return func(p *params) func(a *account) (any, *Error) {
		id, rules := p.id("GroupId", aGroup), p.permissions()
		if len(rules) == 0 {
			p.fail("MissingParameter", "the request must contain the parameter ipPermissions")
		}
		return func(a *account) (any, *Error) {
			g := a.group(id)
			if g == nil || !a.seen(id) {
				return nil, aGroup.missing(id)
			}
			after, err := change(*of(g), rules)
			if err != nil {
				return nil, err
			}
			for _, r := range rules {
				a.act(action, id, fmt.Sprintf("rule %s %d-%d %s", r.protocol, r.from, r.to, r.target), action, true)
			}
			*of(g) = after
			return wasDone(), nil
		}
	}
}

// revoke takes rules away, all of them or none.
func revoke(have, rules []permission) ([]permission, *Error) {
	after := slices.Clone(have)
	for _, r := range rules {
		at := slices.Index(after, r)
		if at < 0 {
			return nil, refuse("InvalidPermission.NotFound", "the specified rule does not exist in this security group: %s %d-%d %s",
				r.protocol, r.from, r.to, r.target)
		}
		after = slices.Delete(after, at, at+1)
	}
	return after, nil
}

// authorize adds rules, all of them or none.
func authorize(have, rules []permission) ([]permission, *Error) {
	after := slices.Clone(have)
	for _, r := range rules {
		if slices.Contains(after, r) {
			return nil, refuse("InvalidPermission.Duplicate", "the specified rule already exists: %s %d-%d %s", r.protocol, r.from, r.to, r.target)
		}
		after = append(after, r)
	}
	if len(after) > maxRules {
		return nil, refuse("RulesPerSecurityGroupLimitExceeded", "%d rules are more than %d", len(after), maxRules)
	}
	return after, nil
}

// permissions reads IpPermissions.N.
func (p *params) permissions() []permission {
	var out []permission
	p.each("IpPermissions", "", func(key string) {
		head := p.permissionHead(key)
		before := len(out)
		p.targets(key, func(kind targetKind, target string) {
			one := head
			one.kind, one.target = kind, target
			out = append(out, one)
		})
		if len(out) == before {
			p.fail("MissingParameter", "%s has no range, prefix list or group", key)
		}
	})
	return out
}

var protocols = map[string]string{"6": "tcp", "17": "udp", "1": "icmp", "58": "icmpv6", "all": "-1"}

var protocolName = regexp.MustCompile(`^(tcp|udp|icmp|icmpv6|-1|\d{1,3})$`)

func (p *params) permissionHead(key string) permission {
	protocol := strings.ToLower(p.required(key + ".IpProtocol"))
	protocol = cmp.Or(protocols[protocol], protocol)
	if !protocolName.MatchString(protocol) {
		p.fail("InvalidParameterValue", "invalid value '%.100s' for IP protocol", protocol)
	}
	from, to := p.number(key+".FromPort", -1, 65535), p.number(key+".ToPort", -1, 65535)
	out := permission{protocol: protocol, from: -1, to: -1}
	if protocol == "-1" {
		return out // EC2 ignores the ports
	}
	if from != nil && to != nil {
		out.from, out.to = *from, *to
	}
	if (protocol == "tcp" || protocol == "udp") && (from == nil || to == nil || *from > *to || *from < 0) {
		p.fail("InvalidParameterValue", "%s needs a range of ports", protocol)
	}
	return out
}

func (p *params) targets(key string, add func(targetKind, string)) {
	p.each(key+".IpRanges", "", func(at string) { add(ipv4, p.cidr(at+".CidrIp", true)); p.text(at + ".Description") })
	p.each(key+".Ipv6Ranges", "", func(at string) { add(ipv6, p.cidr(at+".CidrIpv6", false)); p.text(at + ".Description") })
	p.each(key+".PrefixListIds", "", func(at string) { add(prefixList, p.required(at+".PrefixListId")); p.text(at + ".Description") })
	p.each(key+".Groups", "", func(at string) {
		add(fromGroup, p.id(at+".GroupId", aGroup))
		p.text(at + ".UserId")
		p.text(at + ".Description")
	})
}

// cidr reads an address range in its plain form.
func (p *params) cidr(name string, four bool) string {
	value := p.required(name)
	prefix, err := netip.ParsePrefix(value)
	if err != nil || prefix.Addr().Is4() != four {
		p.fail("InvalidParameterValue", "CIDR block %.100q is malformed", value)
		return value
	}
	return prefix.Masked().String()
}
