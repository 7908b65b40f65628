package emulator

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestPatterns(t *testing.T) {
	for _, c := range []struct {
		name, pattern, event string
		want                 bool
	}{
		{"exact string", `{"a":["x"]}`, `{"a":"x"}`, true},
		{"another string", `{"a":["x"]}`, `{"a":"X"}`, false},
		{"one of several", `{"a":["x","y"]}`, `{"a":"y"}`, true},
		{"every field must match", `{"a":["x"],"b":["y"]}`, `{"a":"x"}`, false},
		{"other fields do not matter", `{"a":["x"]}`, `{"a":"x","b":1}`, true},
		{"exact number", `{"a":[300]}`, `{"a":300}`, true},
		{"number written otherwise", `{"a":[300]}`, `{"a":300.0}`, false},
		{"number is no string", `{"a":["300"]}`, `{"a":300}`, false},
		{"boolean", `{"a":[true]}`, `{"a":true}`, true},
		{"null", `{"a":[null]}`, `{"a":null}`, true},
		{"null is not absent", `{"a":[null]}`, `{}`, false},
		{"empty string", `{"a":[""]}`, `{"a":""}`, true},
		{"list in the event", `{"a":["x"]}`, `{"a":["y","x"]}`, true},
		{"nested", `{"a":{"b":["x"]}}`, `{"a":{"b":"x"}}`, true},
		{"nested, list of objects", `{"a":{"b":["x"]}}`, `{"a":[{"b":"y"},{"b":"x"}]}`, true},
		{"one object must match as a whole", `{"a":{"b":["x"],"c":[1]}}`, `{"a":[{"b":"x","c":2},{"b":"y","c":1}]}`, false},
		{"prefix", `{"a":[{"prefix":"aws."}]}`, `{"a":"aws.guardduty"}`, true},
		{"prefix, other", `{"a":[{"prefix":"aws."}]}`, `{"a":"lab.aws."}`, false},
		{"prefix of a number", `{"a":[{"prefix":"1"}]}`, `{"a":12}`, false},
		{"prefix, any case", `{"a":[{"prefix":{"equals-ignore-case":"AWS"}}]}`, `{"a":"aws.x"}`, true},
		{"suffix", `{"a":[{"suffix":".png"}]}`, `{"a":"x.png"}`, true},
		{"suffix, other", `{"a":[{"suffix":".png"}]}`, `{"a":"x.PNG"}`, false},
		{"suffix, any case", `{"a":[{"suffix":{"equals-ignore-case":".png"}}]}`, `{"a":"x.PNG"}`, true},
		{"equals-ignore-case", `{"a":[{"equals-ignore-case":"ALice"}]}`, `{"a":"alICE"}`, true},
		{"anything-but", `{"a":[{"anything-but":"x"}]}`, `{"a":"y"}`, true},
		{"anything-but, it", `{"a":[{"anything-but":"x"}]}`, `{"a":"x"}`, false},
		{"anything-but, absent", `{"a":[{"anything-but":"x"}]}`, `{}`, false},
		{"anything-but a number", `{"a":[{"anything-but":[1,2]}]}`, `{"a":2}`, false},
		{"anything-but a list", `{"a":[{"anything-but":["x","y"]}]}`, `{"a":"z"}`, true},
		{"anything-but prefix", `{"a":[{"anything-but":{"prefix":"x"}}]}`, `{"a":"xy"}`, false},
		{"anything-but suffixes", `{"a":[{"anything-but":{"suffix":["x","y"]}}]}`, `{"a":"ay"}`, false},
		{"anything-but wildcard", `{"a":[{"anything-but":{"wildcard":"*/lib/*"}}]}`, `{"a":"/usr/bin/x"}`, true},
		{"anything-but ignoring case", `{"a":[{"anything-but":{"equals-ignore-case":["X"]}}]}`, `{"a":"x"}`, false},
		{"numeric, severity", `{"a":[{"numeric":[">=",7]}]}`, `{"a":7.0}`, true},
		{"numeric, below", `{"a":[{"numeric":[">=",7]}]}`, `{"a":6.9}`, false},
		{"numeric, range", `{"a":[{"numeric":[">",0,"<=",5]}]}`, `{"a":5}`, true},
		{"numeric, above the range", `{"a":[{"numeric":[">",0,"<=",5]}]}`, `{"a":5.1}`, false},
		{"numeric, equal", `{"a":[{"numeric":["=",3e2]}]}`, `{"a":300}`, true},
		{"numeric, of a string", `{"a":[{"numeric":["=",1]}]}`, `{"a":"1"}`, false},
		{"exists", `{"a":[{"exists":true}]}`, `{"a":null}`, true},
		{"exists, absent", `{"a":[{"exists":true}]}`, `{}`, false},
		{"does not exist", `{"a":{"b":[{"exists":false}]}}`, `{"c":1}`, true},
		{"does exist", `{"a":{"b":[{"exists":false}]}}`, `{"a":{"b":1}}`, false},
		{"absent or a value", `{"a":[{"exists":false},"x"]}`, `{"a":"x"}`, true},
		{"wildcard", `{"a":[{"wildcard":"dir/*.png"}]}`, `{"a":"dir/sub/x.png"}`, true},
		{"wildcard, no overlap", `{"a":[{"wildcard":"ab*bc"}]}`, `{"a":"abc"}`, false},
		{"wildcard, several", `{"a":[{"wildcard":"*a*b*"}]}`, `{"a":"xxaxxbxx"}`, true},
		{"wildcard, order", `{"a":[{"wildcard":"*a*b*"}]}`, `{"a":"ba"}`, false},
		{"wildcard, an asterisk", `{"a":[{"wildcard":"x\\*"}]}`, `{"a":"xy"}`, false},
		{"cidr", `{"a":[{"cidr":"10.0.0.0/24"}]}`, `{"a":"10.0.0.255"}`, true},
		{"cidr, outside", `{"a":[{"cidr":"10.0.0.0/24"}]}`, `{"a":"10.0.1.0"}`, false},
		{"$or, first", `{"$or":[{"a":["x"]},{"b":["y"]}]}`, `{"a":"x"}`, true},
		{"$or, second", `{"c":[1],"$or":[{"a":["x"]},{"b":["y"]}]}`, `{"b":"y","c":1}`, true},
		{"$or, none", `{"$or":[{"a":["x"]},{"b":["y"]}]}`, `{"a":"y","b":"x"}`, false},
		{"$or, nested", `{"d":{"$or":[{"a":["x"]},{"b":[{"exists":false}]}]}}`, `{"d":{"b":1,"a":"x"}}`, true},
		{"GuardDuty by prefix of type", `{"source":["aws.guardduty"],"detail":{"type":[{"prefix":"Trojan:EC2/"}]}}`,
			`{"source":"aws.guardduty","detail":{"type":"Trojan:EC2/DNSDataExfiltration"}}`, true},
	} {
		p, err := parsePattern(c.pattern)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		value, err := decodeValue([]byte(c.event))
		if err != nil {
			t.Fatal(err)
		}
		if got := p.match(value, true); got != c.want {
			t.Errorf("%s: %t", c.name, got)
		}
	}
}

func TestPatternsThatAreNone(t *testing.T) {
	for name, pattern := range map[string]string{
		"nothing": ``, "not JSON": `{`, "two documents": `{"a":["x"]}{}`, "no object": `["x"]`, "empty object": `{}`, "empty object below": `{"a":{}}`,
		"scalar": `{"a":"x"}`, "empty list": `{"a":[]}`, "list in a list": `{"a":[["x"]]}`, "unknown operator": `{"a":[{"regex":"x"}]}`,
		"two operators": `{"a":[{"prefix":"x","suffix":"y"}]}`, "no operator": `{"a":[{}]}`, "prefix of a number": `{"a":[{"prefix":1}]}`,
		"exists of a word": `{"a":[{"exists":"yes"}]}`, "numeric without list": `{"a":[{"numeric":1}]}`, "numeric, odd": `{"a":[{"numeric":[">"]}]}`,
		"numeric, unknown": `{"a":[{"numeric":["!=",1]}]}`, "numeric, no number": `{"a":[{"numeric":[">","1"]}]}`,
		"numeric, not a range": `{"a":[{"numeric":["<",1,">",2]}]}`, "numeric, too large": `{"a":[{"numeric":[">",5e10]}]}`,
		"anything-but nothing": `{"a":[{"anything-but":[]}]}`, "anything-but boolean": `{"a":[{"anything-but":true}]}`,
		"anything-but exists": `{"a":[{"anything-but":{"exists":true}}]}`, "anything-but no prefix": `{"a":[{"anything-but":{"prefix":[]}}]}`,
		"wildcard, two asterisks": `{"a":[{"wildcard":"a**"}]}`, "wildcard, stray backslash": `{"a":[{"wildcard":"a\\b"}]}`,
		"cidr of a word": `{"a":[{"cidr":"here"}]}`, "$or with a bad part": `{"$or":[{"a":["x"]},{}]}`, "$or with one part": `{"$or":[{"a":["x"]}]}`,
		"too long": `{"a":["` + strings.Repeat("x", maxPattern) + `"]}`,
	} {
		if _, err := parsePattern(pattern); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// An event that says what the pattern says matches, whatever else it says.
func FuzzPattern(f *testing.F) {
	f.Add(`{"a":["x",{"prefix":"y"},{"numeric":[">",1]}]}`, `{"a":"x"}`)
	f.Add(`{"$or":[{"a":[{"exists":false}]},{"b":[{"wildcard":"*a*\\*"}]}]}`, `{"b":["a*",{"c":null}]}`)
	f.Add(`{"a":{"b":[{"anything-but":{"suffix":["x"]}}]}}`, `{"a":[{"b":1},[]]}`)
	f.Fuzz(func(t *testing.T, pattern, event string) {
		p, err := parsePattern(pattern)
		if err != nil {
			return
		}
		value, err := decodeValue([]byte(event))
		if err != nil {
			return
		}
		before, _ := json.Marshal(value)
		first := p.match(value, true)
		if after, _ := json.Marshal(value); string(after) != string(before) || p.match(value, true) != first {
			t.Errorf("matching %s against %s changes something", event, pattern)
		}
		if fields, ok := value.(map[string]any); ok && !strings.Contains(pattern, "zz-other") && !strings.Contains(pattern, "exists") {
			fields["zz-other"] = "x"
			if p.match(fields, true) != first {
				t.Errorf("a field that the pattern %s does not name changes the match of %s", pattern, event)
			}
		}
	})
}

func FuzzParams(f *testing.F) {
	f.Add("Action=CreateImage&Version=2016-11-15&InstanceId=i-0c3f9a5b&Name=abc&TagSpecification.1.ResourceType=image&TagSpecification.1.Tag.1.Key=k")
	f.Add("Action=RevokeSecurityGroupEgress&Version=2016-11-15&GroupId=sg-0c3f9a5b&IpPermissions.1.IpProtocol=-1&IpPermissions.1.IpRanges.1.CidrIp=0.0.0.0%2F0")
	f.Add("Action=DescribeImages&Version=2016-11-15&Owner.1=self&Filter.1.Name=name&Filter.1.Value.1=*%3F&MaxResults=5&NextToken=page-5")
	f.Add("Action=CreateTags&Version=2016-11-15&ResourceId.1=&Tag.1.Key=&Extra=1&DryRun=true")
	f.Fuzz(func(t *testing.T, body string) {
		cfg := &Config{Region: "r", AccountID: "111122223333", Instances: []Instance{{ID: "i-0c3f9a5b", VPC: "vpc-0c3f9a5b", Subnet: "subnet-0c3f9a5b", ImageID: "ami-0c3f9a5b",
			Interfaces: []Interface{{ID: "eni-0c3f9a5b", Groups: []string{"sg-0c3f9a5b"}}}}}}
		a, err := newAccount(cfg, newCounters())
		if err != nil {
			t.Fatal(err)
		}
		s := ec2Service{&Emulator{cfg: *cfg, account: a}}
		action := queryAction([]byte(body))
		_, refusal := s.do(nil, action, []byte(body))
		if refusal != nil && refusal.Code == "" {
			t.Errorf("%q is refused without a code", body)
		}
		p, bad := parseParams(body)
		if bad != nil && refusal == nil {
			t.Errorf("%q cannot be read, but was done", body)
		}
		if bad == nil && p.has("Surely.Unknown") && refusal == nil {
			t.Errorf("%q: a parameter that nobody reads was ignored", body)
		}
	})
}
