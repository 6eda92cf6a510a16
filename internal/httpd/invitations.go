package httpd

import (
	"context"
	"fmt"
	"html/template"
	"net/http"
	"net/netip"
	"time"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/internal/control"
	"github.com/boughdb/bough/internal/core"
)

func invitation(i core.Invitation) api.Invitation {
	return api.Invitation{
		ID: i.ID, Email: i.Email, OrgID: i.OrgID, InvitedBy: i.InvitedBy, InvitedAt: stamp(i.InvitedAt), Role: api.MemberRole(i.Role),
	}
}

// GetOrganizationInvitations implements GET /organizations/{org_id}/invitations.
func (h *handlers) GetOrganizationInvitations(ctx context.Context, req api.GetOrganizationInvitationsRequestObject) (api.GetOrganizationInvitationsResponseObject, error) {
	list, err := h.uc.ListInvitations(ctx, CallerFrom(ctx), req.OrgID)
	if err != nil {
		return nil, err
	}
	return api.GetOrganizationInvitations200JSONResponse{Invitations: each(list, invitation)}, nil
}

// CreateOrganizationInvitations implements POST /organizations/{org_id}/invitations.
func (h *handlers) CreateOrganizationInvitations(ctx context.Context, req api.CreateOrganizationInvitationsRequestObject) (api.CreateOrganizationInvitationsResponseObject, error) {
	var list []control.Invite
	for _, i := range req.Body.Invitations {
		list = append(list, control.Invite{Email: i.Email, Role: string(i.Role)})
	}
	made, err := h.uc.CreateInvitations(ctx, creator(ctx, func(made []control.InvitationMade, w http.ResponseWriter) error {
		return invitationsMade(made).VisitCreateOrganizationInvitationsResponse(w)
	}), req.OrgID, list)
	if err != nil {
		return nil, err
	}
	return invitationsMade(made), nil
}

func invitationsMade(made []control.InvitationMade) api.CreateOrganizationInvitations200JSONResponse {
	return api.CreateOrganizationInvitations200JSONResponse{Invitations: each(made, func(m control.InvitationMade) api.Invitation {
		out := invitation(m.Invitation)
		out.AcceptURL = opt(m.Link)
		return out
	})}
}

// page is what opens behind the link of an invitation.
var page = template.Must(template.New("invitation").Parse(`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Bough: invitation</title></head><body>
{{- if .Error}}<h1>This does not work</h1><p>{{.Error}}</p>
{{- else if .Done}}<h1>Welcome, {{.Name}}</h1><p>You are a member of {{.Org}}.</p>
{{- if .Key}}<p>Your API key, shown this once:</p><pre>{{.Key}}</pre>{{else}}<p>Your API keys work there from now on.</p>{{end}}
{{- else}}<h1>Join {{.Org}}</h1><p>{{.Email}} is invited with the role {{.Role}}.</p>
<form method="post" action="/invitation"><input type="hidden" name="token" value="{{.Token}}">
<label>Your name <input name="name" required maxlength="128" autofocus></label> <button>Accept</button></form>
{{- end}}</body></html>
`))

type pageData struct {
	Error, Name, Org, Email, Role, Key, Token string
	Done                                      bool
}

// guestQuota bounds the calls of one address without a key: more than anybody needs who has a link, and nothing for somebody who
// guesses at tokens, which are 256 bits.
var guestQuota = Quota{Calls: 30, Per: time.Minute}

// guest counts a call without a key; KindRateLimited when it is one too many.
func (d *door) guest(r *http.Request) error {
	wait, q, _ := d.guests.take(network(host(r)), "", d.opt.Now())
	if wait == 0 {
		return nil
	}
	return &core.Error{Kind: core.KindRateLimited, RetryAfter: wait,
		Message: fmt.Sprintf("too many calls: an address is limited to %d in %v; wait, then try again", q.Calls, q.Per)}
}

// network is what belongs to one client: an IPv4 address, or the /64 of an IPv6 address, which has as many as it likes.
func network(host string) string {
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return host
	}
	if addr = addr.Unmap().WithZone(""); addr.Is4() {
		return addr.String()
	}
	p, _ := addr.Prefix(64)
	return p.String()
}

// invitation shows an invitation and, on POST, accepts it. Opening the link changes nothing: mail filters do it, too.
func (d *door) invitation(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead && r.Method != http.MethodPost {
		d.notAllowed(w, r, "GET, HEAD, POST")
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Content-Security-Policy", "default-src 'none'; form-action 'self'; frame-ancestors 'none'")
	var data pageData
	err := d.guest(r)
	if err == nil {
		data, err = d.welcome(w, r)
	}
	if err != nil {
		kind := core.KindOf(err)
		if kind == core.KindInternal {
			d.log.ErrorContext(r.Context(), "internal error", "request_id", RequestID(r.Context()), "operation", "invitation", "error", err)
		}
		data.Error = core.UserMessage(err)
		setRetryAfter(h, err)
		w.WriteHeader(kinds[kind].status)
	}
	_ = page.Execute(w, data) // the client is gone
}

// welcome carries out a call of invitation.
func (d *door) welcome(w http.ResponseWriter, r *http.Request) (data pageData, err error) {
	if r.Method != http.MethodPost {
		data.Token = r.URL.Query().Get("token")
		i, err := d.opt.UseCases.Invitation(r.Context(), data.Token)
		data.Org, data.Email, data.Role = i.OrgName, i.Email, i.Role
		return data, err
	}
	r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
	if err := r.ParseForm(); err != nil {
		return data, core.Invalidf("the form cannot be read")
	}
	done, err := d.opt.UseCases.AcceptInvitation(r.Context(), r.PostForm.Get("token"), r.PostForm.Get("name"))
	if err != nil {
		return data, err
	}
	data.Done, data.Name, data.Org = true, done.User.Name, done.OrgID
	if done.Key != nil {
		data.Key = done.Key.Secret
	}
	return data, nil
}
