package policy

import (
	"errors"

	"github.com/vmesh-io/vmesh/pkg/apis/kind/jsonscan"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// spec is what of an object's spec says whom it acts on. Which of the fields there are
// depends on the kind; no two kinds use a name differently.
type spec struct {
	hosts     []string // of VirtualService and ServiceEntry
	host      string   // of DestinationRule
	exportTo  []string
	gateways  []string
	addresses []string
	protocols []string // of the ports of a ServiceEntry
	subnets   bool     // a VirtualService with routes by the address
	servers   []server // of Gateway
	selector  map[string]string
	// selective is a DestinationRule with a workloadSelector.
	selective bool
}

type server struct {
	hosts []string
	// credentials are the names of secrets, by their field.
	credentials []credential
}

type credential struct{ field, name string }

var errUnreadable = errors.New("it is not what its kind's schema says")

// readSpec reads an object's spec. What it does not know, such as all that says what
// becomes of a request, it passes over.
func readSpec(o *object.Object) (*spec, error) {
	s := &spec{}
	data := o.Field("spec")
	if len(data) == 0 {
		return s, nil
	}
	c := jsonscan.New(data)
	ok := c.Null() || c.Members(func(name []byte) bool {
		switch string(name) {
		case "hosts":
			return texts(c, &s.hosts)
		case "exportTo":
			return texts(c, &s.exportTo)
		case "gateways":
			return texts(c, &s.gateways)
		case "addresses":
			return texts(c, &s.addresses)
		case "host":
			return text(c, &s.host)
		case "workloadSelector":
			s.selective = c.Peek() == '{'
			return c.Skip()
		case "selector":
			return c.Null() || labels(c, &s.selector)
		case "ports":
			return each(c, func() bool {
				protocol := ""
				ok := c.Members(func(name []byte) bool {
					if string(name) == "protocol" {
						return text(c, &protocol)
					}
					return c.Skip()
				})
				s.protocols = append(s.protocols, protocol)
				return ok
			})
		case "tcp", "tls":
			return each(c, func() bool { return readRoute(c, &s.subnets) })
		case "servers":
			return each(c, func() bool {
				s.servers = append(s.servers, server{})
				return readServer(c, &s.servers[len(s.servers)-1])
			})
		}
		return c.Skip()
	})
	if !ok || !c.AtEnd() {
		return nil, errUnreadable
	}
	return s, nil
}

func readServer(c *jsonscan.Cursor, s *server) bool {
	return c.Members(func(name []byte) bool {
		switch string(name) {
		case "hosts":
			return texts(c, &s.hosts)
		case "tls":
			return c.Null() || c.Members(func(name []byte) bool {
				switch field := string(name); field {
				case "credentialName", "caCertCredentialName":
					var name string
					ok := text(c, &name)
					s.credentials = append(s.credentials, credential{"tls." + field, name})
					return ok
				case "credentialNames":
					var names []string
					ok := texts(c, &names)
					for i, name := range names {
						s.credentials = append(s.credentials, credential{at("tls."+field, i), name})
					}
					return ok
				}
				return c.Skip()
			})
		}
		return c.Skip()
	})
}

// readRoute looks for matches by the address.
func readRoute(c *jsonscan.Cursor, subnets *bool) bool {
	return c.Members(func(name []byte) bool {
		if string(name) != "match" {
			return c.Skip()
		}
		return each(c, func() bool {
			return c.Members(func(name []byte) bool {
				if string(name) != "destinationSubnets" {
					return c.Skip()
				}
				var addresses []string
				ok := texts(c, &addresses)
				*subnets = *subnets || len(addresses) > 0
				return ok
			})
		})
	})
}

func each(c *jsonscan.Cursor, visit func() bool) bool { return c.Null() || c.Items(visit) }

func text(c *jsonscan.Cursor, to *string) (ok bool) {
	if c.Null() {
		return true
	}
	*to, ok = c.Text()
	return ok
}

func texts(c *jsonscan.Cursor, to *[]string) bool {
	return each(c, func() bool {
		s, ok := c.Text()
		*to = append(*to, s)
		return ok
	})
}

func labels(c *jsonscan.Cursor, to *map[string]string) bool {
	*to = map[string]string{}
	return c.Members(func(name []byte) bool {
		key := string(name) // visit may only borrow it
		value, ok := c.Text()
		(*to)[key] = value
		return ok
	})
}
