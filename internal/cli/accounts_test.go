package cli

import (
	"slices"
	"strings"
	"testing"
)

// acme answers about an organization and about who may use the shop.
func acme(t *testing.T) *fakeAPI {
	f := newFake(t)
	member := func(id, email, role string) obj {
		return obj{"member": obj{"id": id, "user_id": "u-" + id, "org_id": "org-1", "role": role, "joined_at": "2031-03-10T12:00:00Z"}, "user": obj{"email": email}}
	}
	key := obj{"id": 100007, "name": "deploy", "created_at": "2031-03-10T12:00:00Z", "created_by": obj{"id": "u-1", "name": "Robin"}, "last_used_from_addr": "",
		"project_id": shop}
	permission := obj{"id": "p-1", "granted_to_email": "kim@example.com", "granted_at": "2031-03-10T12:00:00Z"}
	jwks := obj{"id": "j-1", "project_id": shop, "jwks_url": "https://login.example.com/k", "provider_name": "example", "role_names": []string{"app"},
		"created_at": "2031-03-10T12:00:00Z", "updated_at": "2031-03-10T12:00:00Z"}
	invitation := obj{"id": "i-1", "email": "sam@example.com", "org_id": "org-1", "invited_by": "u-1", "invited_at": "2031-03-10T12:00:00Z", "role": "admin"}
	invited := obj{"accept_url": "http://x/invitation?token=1"}
	for k, v := range invitation {
		invited[k] = v
	}
	f.projects[0]["org_id"] = "org-1"
	f.projects[0]["settings"] = obj{"allowed_ips": obj{"ips": []string{"203.0.113.7", "10.0.0.0/8"}, "protected_branches_only": false}}
	f.projects = append(f.projects, project("other", "other"))
	org, project := "/organizations/org-1", "/projects/"+shop
	f.answers = map[string]any{
		"GET " + org:                              obj{"id": "org-1", "name": "Acme", "handle": "acme", "created_at": "2030-03-17T12:00:00Z"},
		"GET " + org + "/members":                 obj{"members": []obj{member("m-1", "robin@example.com", "admin"), member("m-2", "kim@example.com", "member")}},
		"PATCH " + org + "/members/m-2":           member("m-2", "", "admin")["member"],
		"DELETE " + org + "/members/m-2":          obj{},
		"GET " + org + "/invitations":             obj{"invitations": []obj{invitation}},
		"POST " + org + "/invitations":            obj{"invitations": []obj{invited}},
		"GET " + org + "/api_keys":                []obj{key},
		"POST " + org + "/api_keys":               obj{"id": 100008, "key": "napi_secret", "name": "deploy", "created_at": "2031-03-17T12:00:00Z", "created_by": "u", "project_id": shop},
		"DELETE " + org + "/api_keys/100007":      obj{"id": 100007, "name": "deploy", "revoked": true, "created_at": "2031-03-10T12:00:00Z", "created_by": "u"},
		"POST " + org + "/projects/transfer":      obj{},
		"POST /users/me/projects/transfer":        obj{},
		"GET " + project + "/permissions":         obj{"project_permissions": []obj{permission}},
		"POST " + project + "/permissions":        permission,
		"DELETE " + project + "/permissions/p-1":  permission,
		"POST " + project + "/transfer_requests":  obj{"id": "t-1", "project_id": shop, "created_at": "2031-03-17T12:00:00Z", "expires_at": "2031-03-18T12:00:00Z"},
		"PUT /projects/other/transfer_requests/t": obj{},
		"GET " + project + "/jwks":                obj{"jwks": []obj{jwks}},
		"POST " + project + "/jwks":               obj{"jwks": jwks, "operations": []obj{}},
		"DELETE " + project + "/jwks/j-1":         jwks,
		"PATCH " + project:                        obj{"project": f.projects[0], "operations": []obj{}},
		"GET /projects/shared":                    obj{"projects": []obj{}},
	}

	return f
}

func TestAccounts(t *testing.T) {
	f := acme(t)
	s := newShell(t, f)
	s.env["BOUGH_PROJECT_ID"] = shop
	for _, c := range []struct{ line, out, errs, call string }{
		{"orgs get", "Id:       org-1\nName:     Acme\nHandle:   acme\nCreated:  2030-03-17T12:00:00Z (1 year ago)\n", "", ""},
		{"members list", "EMAIL              ROLE    ID   JOINED\nrobin@example.com  admin   m-1  7 days ago\nkim@example.com    member  m-2  7 days ago\n", "", ""},
		{"members set-role KIM@example.com admin --org-id acme", "Id:            m-2\nEmail:         kim@example.com\nRole:          admin\nOrganization:  org-1\n", "",
			`PATCH /organizations/org-1/members/m-2 {"role":"admin"}`},
		{"members remove m-2", "Removed kim@example.com from org-1\n", "", "DELETE /organizations/org-1/members/m-2 {}"},
		{"invitations list", "EMAIL            ROLE   INVITED\nsam@example.com  admin  7 days ago\n", "", ""},
		{"invitations create sam@example.com --role admin", "EMAIL            ROLE   LINK\nsam@example.com  admin  http://x/invitation?token=1\n",
			"Pass each link on to its person; it works once, and cannot be shown again.\n",
			`POST /organizations/org-1/invitations {"invitations":[{"email":"sam@example.com","role":"admin"}]}`},
		{"keys list --org-id Acme", "ID      NAME    PROJECT               MADE BY  LAST USED  FROM  CREATED\n100007  deploy  brisk-ember-81697531  Robin    never      -     7 days ago\n", "", ""},
		{"keys create deploy --project-id shop", "Id:       100008\nName:     deploy\nProject:  brisk-ember-81697531\nKey:      napi_secret\n",
			"Keep the key now: it cannot be shown again.\n", `POST /organizations/org-1/api_keys {"key_name":"deploy","project_id":"` + shop + `"}`},
		{"keys revoke deploy --org-id org-1", "Revoked key deploy (100007)\n", "", "DELETE /organizations/org-1/api_keys/100007 {}"},
		{"projects permissions", "EMAIL            ID   SINCE\nkim@example.com  p-1  7 days ago\n", "", ""},
		{"projects share kim@example.com", "Shared brisk-ember-81697531 with kim@example.com\n", "", `POST /projects/` + shop + `/permissions {"email":"kim@example.com"}`},
		{"projects unshare kim@example.com", "brisk-ember-81697531 is no longer shared with kim@example.com\n", "", "DELETE /projects/" + shop + "/permissions/p-1 {}"},
		{"projects transfer shop --to-org acme", "brisk-ember-81697531 now belongs to org-1\n", "",
			`POST /users/me/projects/transfer {"destination_org_id":"org-1","project_ids":["` + shop + `"]}`},
		{"projects transfer shop --to-org acme --from-org org-1", "brisk-ember-81697531 now belongs to org-1\n", "",
			`POST /organizations/org-1/projects/transfer {"destination_org_id":"org-1","project_ids":["` + shop + `"]}`},
		{"projects request-transfer --ttl 1h", "Id:           t-1\nProject:      brisk-ember-81697531\nExpires:      2031-03-18T12:00:00Z (1 day from now)\n" +
			"Accept with:  bough projects accept-transfer brisk-ember-81697531 t-1\n", "", `POST /projects/` + shop + `/transfer_requests {"ttl_seconds":3600}`},
		{"projects accept-transfer other t", "other now belongs to org-1\n", "", `PUT /projects/other/transfer_requests/t {"org_id":"org-1"}`},
		{"jwks list", "ID   PROVIDER  URL                          BRANCH  ROLES  CREATED\nj-1  example   https://login.example.com/k  -       app    7 days ago\n", "", ""},
		{"jwks add https://login.example.com/k --provider example --role app --branch main", "Id:        j-1\nProvider:  example\nURL:       https://login.example.com/k\n", "",
			`POST /projects/` + shop + `/jwks {"branch_id":"br-main-1","jwks_url":"https://login.example.com/k","provider_name":"example","role_names":["app"]}`},
		{"jwks delete j-1", "Deleted JWKS j-1 (https://login.example.com/k)\n", "", "DELETE /projects/" + shop + "/jwks/j-1 {}"},
		{"ip-allow list", "Project:           brisk-ember-81697531\nConnections from:  203.0.113.7, 10.0.0.0/8\n", "", ""},
		{"ip-allow add 10.0.0.0/8 ::1 --protected-only", "Project:           brisk-ember-81697531\nConnections from:  203.0.113.7, 10.0.0.0/8\n", "",
			`PATCH /projects/` + shop + ` {"project":{"settings":{"allowed_ips":{"ips":["203.0.113.7","10.0.0.0/8","::1"],"protected_branches_only":true}}}}`},
		{"ip-allow remove 203.0.113.7", "Project:           brisk-ember-81697531\nConnections from:  203.0.113.7, 10.0.0.0/8\n", "",
			`PATCH /projects/` + shop + ` {"project":{"settings":{"allowed_ips":{"ips":["10.0.0.0/8"]}}}}`},
		{"ip-allow reset", "Project:           brisk-ember-81697531\nConnections from:  203.0.113.7, 10.0.0.0/8\n", "",
			`PATCH /projects/` + shop + ` {"project":{"settings":{"allowed_ips":{"ips":[]}}}}`},
	} {
		f.calls = nil
		s.expect(c.line, c.out, c.errs, 0)
		if want := slices.DeleteFunc([]string{c.call}, func(s string) bool { return s == "" }); !slices.Equal(f.calls, want) {
			t.Errorf("%s sent\n%q, wanted\n%q", c.line, f.calls, want)
		}
	}
	f.calls = nil
	s.refuses("members remove rob@example.com", 1, "no member", "did you mean robin@example.com?")
	s.refuses("members set-role m-2 owner", 2, "admin or member")
	s.refuses("invitations create a@example.com --role owner", 2, "admin or member")
	s.refuses("orgs get acne", 1, "did you mean Acme or acme?")
	s.refuses("projects unshare sam@example.com", 1, "not shared with")
	s.refuses("projects transfer shop", 2, "--to-org")
	s.refuses("projects list --shared --org-id acme", 2, "leave --org-id out")
	s.refuses("jwks add https://x", 2, "--provider")
	s.refuses("ip-allow remove 203.0.113.8", 1, "not on the list", "did you mean 203.0.113.7?")
	s.refuses("ip-allow remove 203.0.113.7 10.0.0.0/8", 1, "lets everybody in", "reset")
	s.refuses("keys revoke nothing --org-id acme", 1, "no key")
	if len(f.calls) != 0 {
		t.Errorf("something was changed: %v", f.calls)
	}
	for _, list := range []string{"members list", "invitations list", "keys list --org-id acme", "projects permissions", "jwks list"} {
		if out, errs, code := s.run(append(strings.Fields(list), "-o", "json")...); code != 0 || !strings.HasPrefix(out, "[\n  {") {
			t.Errorf("%s: %d %s%s", list, code, out, errs)
		}
	}
}

func TestSetExpiration(t *testing.T) {
	f := newFake(t)
	s := newShell(t, f)
	for line, body := range map[string]string{
		"branches set-expiration try-index --expires-at 24h":                         `{"branch":{"expires_at":"2031-03-18T12:00:00Z"}}`,
		"branches set-expiration try-index --expires-at 2031-03-20T18:00:00Z":        `{"branch":{"expires_at":"2031-03-20T18:00:00Z"}}`,
		"branches set-expiration try-index --expires-at 2031-03-20T18:00:00.5+02:00": `{"branch":{"expires_at":"2031-03-20T18:00:00.5+02:00"}}`,
		"branches set-expiration try-index":                                          `{"branch":{"expires_at":null}}`,
	} {
		f.calls = nil
		if _, errs, code := s.run(strings.Fields(line)...); code != 0 || len(f.calls) != 1 || f.calls[0] != "PATCH /projects/"+shop+"/branches/br-try-2 "+body {
			t.Errorf("%s: %d %s %q", line, code, errs, f.calls)
		}
	}
	f.calls = nil
	s.refuses("branches set-expiration try-index --expires-at tomorrow", 2, "2031-03-20T18:00:00Z")
	s.refuses("branches create --expires-at 2031-03-20", 2, "with its zone")
	if _, _, code := s.run("branches", "set-expiration", "try-index", "--expires-at", ""); code != 2 || len(f.calls) != 0 {
		t.Errorf("an unset variable took the date away: %d %q", code, f.calls)
	}
}
