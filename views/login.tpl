% rebase('base', title='Log in · forge', scripts=())
% if logged_in:
<h1>Log out</h1>
<p>You are logged in.</p>
<form method="post" action="/logout"><button>Log out</button></form>
% else:
<h1>Log in</h1>
% if get('wrong'):
<p class="trouble" role="alert">{{wrong}}</p>
% end
<form method="post" action="/login" class="login">
<label>Merge password <input type="password" name="password" autocomplete="current-password" required autofocus></label>
<input type="hidden" name="to" value="{{!exact(to)}}">
<button class="go">Log in</button>
</form>
% end
